"""About how long a training step would take on a named device at its peaks: a projection, not a measurement.

Each part of a step takes the longer of two times, that of its products at the device's peak and that of its bytes at
the device's bandwidth (Williams et al. 2009, "Roofline: an insightful visual performance model"). The parts follow one
another, and what autograd keeps is a part of its own, as if no product ran while it was moved: the sum is above the
roofline of the step as a whole, :attr:`Roofline.least_seconds`, in which everything overlaps. In neither are launches,
products too small to fill the device, synchronisation, communication, and data that a cache would have had to hold. A
sparse model, whose products are smaller and more, loses more by these than a dense one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.checks import require_choice
from toolkit.compute.cost import cost
from toolkit.compute.memory import memory
from toolkit.models import DecoderConfig

LOW = 2
"""Bytes of a number that a product reads: bf16."""

FULL = 4
"""Bytes of a weight, a gradient or a moment: fp32."""


@dataclass(frozen=True)
class Device:
    """A device by its data sheet.

    Attributes:
        flops: dense bf16 products, FLOP/s.
        bandwidth: of its memory, bytes/s.
    """

    flops: float
    bandwidth: float


DEVICES = {
    "A100": Device(312e12, 2.039e12),  # SXM, 80 GB
    "H100": Device(989e12, 3.35e12),  # SXM
    "H200": Device(989e12, 4.8e12),  # SXM
    "B200": Device(2250e12, 8e12),
    "MI300X": Device(1307e12, 5.3e12),
}
"""Peaks by the vendors' data sheets, without structured sparsity."""


@dataclass(frozen=True)
class Part:
    """One part of a step.

    Attributes:
        name: the kind of work, ``"activations"`` or ``"optimizer"``.
        flops: of its products, recomputation included.
        bytes: that it moves.
        seconds: the longer of the two times.
    """

    name: str
    flops: float
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Roofline:
    """The time of one training step on one device at its peaks, part by part."""

    device: str
    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        """Of the whole step, one part after another."""
        return sum(part.seconds for part in self.parts)

    @property
    def least_seconds(self) -> float:
        """The longer time of all products and of all bytes: no step that moves these bytes can be faster."""
        flops, moved = sum(part.flops for part in self.parts), sum(part.bytes for part in self.parts)
        return _seconds(flops, moved, DEVICES[self.device])


def roofline(config: DecoderConfig, batch_size: int, seq_len: int, device: str) -> Roofline:
    """Project a step (forward, backward, AdamW; bf16 products, fp32 weights) of ``config`` onto ``device``.

    Products run what the ``hardware`` convention counts. Weights are read in bf16 by both passes and their gradients
    written in fp32, once for a matrix that embedding and head share. The embedding reads its tokens' rows, in fp32.
    What autograd keeps is written once and read once, and nothing else of what passes between products is counted.
    AdamW reads weight, gradient and moments and writes weight, moments and the bf16 copy.

    Args:
        config: the decoder.
        batch_size: sequences on the device.
        seq_len: tokens in each.
        device: a name of ``DEVICES``.

    Raises:
        ValueError: if a size is not positive or the device unknown.
    """
    require_choice("device", device, tuple(DEVICES))
    price, kept = cost(config, seq_len), memory(config, batch_size, seq_len, "bf16-mixed")
    flops: dict[str, float] = defaultdict(float)
    for part in price.work:
        if part.phase != "evaluation":
            flops[part.kind] += 2 * (1 + part.computed_backward) * part.computed * batch_size
    weights = _weight_bytes(config, price.parameters, batch_size * seq_len)
    kinds = dict.fromkeys([*flops, *weights])
    parts = [_part(kind, flops[kind], weights.get(kind, 0), DEVICES[device]) for kind in kinds]
    parts.append(_part("activations", 0.0, 2 * kept.activations, DEVICES[device]))
    parts.append(_part("optimizer", 0.0, price.total_parameters * (7 * FULL + LOW), DEVICES[device]))
    return Roofline(device, tuple(parts))


def _weight_bytes(config: DecoderConfig, parameters: Mapping[str, int], tokens: int) -> dict[str, int]:
    """What moves of each kind's weights and of their gradients in a step of ``tokens`` tokens."""
    moved = {kind: count * (2 * LOW + FULL) for kind, count in parameters.items()}
    table, rows = parameters["embedding"], tokens * config.dim * FULL
    if config.tied_head:
        return {**moved, "embedding": rows, "head": table * (2 * LOW + FULL)}
    return {**moved, "embedding": rows + table * FULL}


def _part(name: str, flops: float, moved: float, device: Device) -> Part:
    return Part(name, flops, moved, _seconds(flops, moved, device))


def _seconds(flops: float, moved: float, device: Device) -> float:
    """By the roof that is lower."""
    return max(flops / device.flops, moved / device.bandwidth)
