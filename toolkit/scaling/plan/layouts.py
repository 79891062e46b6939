"""How a run could be spread over so many GPUs: every layout, what a device keeps in it, and which fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from toolkit.checks import require, require_choice, require_positive
from toolkit.compute import Cost, Memory, Traffic, cost, memory, traffic
from toolkit.compute.memory import require_trainable
from toolkit.layers.recomputation import Recompute, layer_policies, require_recompute
from toolkit.models import DecoderConfig
from toolkit.parallel import ParallelConfig
from toolkit.scaling.plan.shape import Family, ModelShape

HEAD_DIM, QUERIES_PER_KEY, FEED_FORWARD, ASPECT = 128, 4, 3.5, 128
"""Of planned models: width of a head, query heads that share a key head, hidden width and depth to width (Llama 3)."""

TOLERANCE = 0.02
"""Widths whose models come this near to what was asked for are chosen among by their depth."""

FARTHEST = 0.1
"""No model is planned that is farther from what was asked for."""

TOKENS_PER_PARAMETER = 20
"""Compute-optimal training tokens for each parameter that a token uses (Hoffmann et al. 2022, arXiv 2203.15556)."""

RULE = (
    f"width a multiple of {HEAD_DIM * QUERIES_PER_KEY} (heads of {HEAD_DIM}, {QUERIES_PER_KEY} queries a key head), "
    f"hidden {FEED_FORWARD:g} x width, shared among the experts that a token uses; of the widths and depths within "
    f"{TOLERANCE:.0%} the one nearest to {ASPECT} x depth"
)
ORDER = "fewest bytes that a device sends for a token of the global batch, then the least memory"
"""Of layouts: what is sent is by formula, and nothing of how fast which link is."""


@dataclass(frozen=True)
class Run:
    """What is to be trained, and on what.

    Attributes:
        params: parameters in all, embedding and head among them; a model within 10% is planned.
        experts: routed experts of each layer; 0 for a dense model.
        top_k: routed experts that a token uses.
        shared_experts: experts of each layer that every token uses.
        seq: tokens of a sequence.
        batch: sequences of a micro-batch; in a step a pipeline has as many micro-batches as processes, others one.
        gpus: GPUs that the run is spread over.
        gpu_memory: memory of a GPU, in GB (1e9 bytes).
        usable: share of a GPU's memory, up to 1, that training may fill; the rest is for libraries, fragments and what
            is not counted.
        per_node: GPUs of a node, within which tensor stays.
        vocab: token ids of the vocabulary.
        pattern: attention of every layer, such as Causal() & SlidingWindow(4096), in tokens.
        precision: bf16-mixed (fp32 weights, products in bf16) or 32-true.
        recompute: what layers compute again: none, full, selective, or a number n: every n-th layer in full.
        gather_dtype: what shard gathers parameters in: parameter (fp32) or bf16.
        zero: ZeRO's stage with shard: 3 gives gathered parameters back until the backward pass, 2 keeps them.

    Raises:
        ValueError: if a number is out of its range or a choice unknown.
    """

    params: float
    experts: int = 0
    top_k: int = 2
    shared_experts: int = 0
    seq: int = 4096
    batch: int = 1
    gpus: int = 8
    gpu_memory: float = 80.0
    usable: float = 0.9
    per_node: int = 8
    vocab: int = 32768
    pattern: str = "Causal()"
    precision: str = "bf16-mixed"
    recompute: Recompute = "none"
    gather_dtype: str = "parameter"
    zero: int = 3

    def __post_init__(self) -> None:
        names = ("params", "seq", "batch", "gpus", "gpu_memory", "per_node", "vocab")
        require_positive(**{name: getattr(self, name) for name in names})
        require(0 < self.usable <= 1, "usable", self.usable, "above 0 and at most 1")
        require_choice("precision", self.precision, ("bf16-mixed", "32-true"))
        require_recompute(self.recompute)
        ParallelConfig(shard=2, gather_dtype=self.gather_dtype, zero=self.zero)  # refuses what it does not know
        _ = self.family  # and that

    @property
    def family(self) -> Family:
        """How its layers are built."""
        return Family("planned", self.experts, self.top_k, self.shared_experts, patterns=(self.pattern,))

    @property
    def room(self) -> float:
        """Bytes of a GPU that training may fill."""
        return self.usable * self.gpu_memory * 1e9


@dataclass(frozen=True)
class Layout:
    """One way to spread a run, and what it comes to.

    Attributes:
        parallel: the processes.
        memory: what the fullest device keeps.
        traffic: what the device that sends most sends in a step.
        tokens: of the global batch of a step.
    """

    parallel: ParallelConfig
    memory: Memory
    traffic: Traffic
    tokens: int

    @property
    def sent_per_token(self) -> float:
        """Bytes that a device sends for each token of the global batch: layouts take more or fewer in a step."""
        return self.traffic.total / self.tokens

    @property
    def order(self) -> tuple[float, ...]:
        """Sorts as :data:`ORDER` says."""
        sizes = self.parallel
        return self.sent_per_token, self.memory.training, sizes.pipeline, sizes.context, sizes.expert


def find_decoder(run: Run) -> DecoderConfig:
    """The decoder nearest to ``run.params`` parameters, by :data:`RULE`.

    Raises:
        ValueError: if there is none within 10%.
    """
    step = HEAD_DIM * QUERIES_PER_KEY
    found = []
    for dim in range(step, 64 * step + 1, step):
        one, two = (cost(_decoder(run, dim, layers), 1).total_parameters for layers in (1, 2))
        layers = max(1, round((run.params - one) / (two - one)) + 1)
        off = abs((one + (layers - 1) * (two - one)) / run.params - 1)
        found.append((max(off, TOLERANCE), abs(math.log(dim / layers / ASPECT)), dim, layers))
        if one > 2 * run.params:
            break
    off, _, dim, layers = min(found)
    smallest = cost(_decoder(run, step, 1), 1).total_parameters
    right = f"such that a model is within {FARTHEST:.0%} of it; the smallest has {smallest:.4g}"
    require(off <= FARTHEST, "params", run.params, right)
    return _decoder(run, dim, layers)


def _decoder(run: Run, dim: int, layers: int) -> DecoderConfig:
    shape = ModelShape((run.family,), layers, None, HEAD_DIM, QUERIES_PER_KEY, FEED_FORWARD, tied_head=False)
    return shape.decoder("planned", dim, run.vocab)


def optimal_tokens(price: Cost) -> int:
    """Tokens by :data:`TOKENS_PER_PARAMETER`."""
    return TOKENS_PER_PARAMETER * price.total_active_parameters


def layouts(config: DecoderConfig, run: Run) -> list[Layout]:
    """Every way to spread ``config`` over ``run.gpus``, best first by :data:`ORDER`; not all of them fit."""
    found = [_layout(config, parallel, run) for parallel in _meshes(run) if not refusal(config, parallel, run)]
    return sorted(found, key=lambda layout: layout.order)


def _layout(config: DecoderConfig, parallel: ParallelConfig, run: Run) -> Layout:
    settings = config, run.batch * parallel.micro_batch_count, run.seq, run.precision, parallel, run.recompute
    tokens = run.batch * parallel.micro_batch_count * run.seq * parallel.batch_count
    return Layout(parallel, memory(*settings), traffic(*settings), tokens)


def fitting(found: list[Layout], run: Run) -> list[Layout]:
    """Those whose fullest device keeps no more than ``run.room``, in the same order."""
    return [layout for layout in found if layout.memory.training <= run.room]


def refusal(config: DecoderConfig, parallel: ParallelConfig, run: Run) -> str:
    """Why the toolkit would not train ``config`` so, or this plan would not; empty where both would.

    A tensor group stays on a node; the rest is what :func:`toolkit.compute.memory.supported.require_trainable` refuses.
    """
    if run.per_node % parallel.tensor:
        return f"tensor={parallel.tensor}: it must be a divisor of per_node={run.per_node}, to stay on a node"
    try:
        require_trainable(config, parallel, run.seq, layer_policies(run.recompute, len(config.blocks)))
    except ValueError as error:
        return str(error)
    return ""


def _meshes(run: Run) -> Iterator[ParallelConfig]:
    """All sizes that multiply to the GPUs."""
    for pipeline, data, shard, context, tensor in _products(run.gpus, 5):
        sizes: dict[str, Any] = {"data": data, "shard": shard, "tensor": tensor, "context": context}
        sizes |= {"pipeline": pipeline, "zero": run.zero}
        for expert in _divisors(data * shard * context) if run.experts else [1]:
            layout = ParallelConfig(devices=run.gpus, expert=expert, **sizes)
            yield replace(layout, gather_dtype=run.gather_dtype) if layout.gathers else layout


def _products(count: int, factors: int) -> Iterator[tuple[int, ...]]:
    """Every tuple of so many positive numbers whose product is ``count``."""
    if factors == 1:
        yield (count,)
        return
    for first in _divisors(count):
        for rest in _products(count // first, factors - 1):
            yield first, *rest


def _divisors(count: int) -> list[int]:
    return [size for size in range(1, count + 1) if count % size == 0]
