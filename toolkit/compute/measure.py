"""FLOPs counted while the model runs, to hold the closed forms against.

Nothing here knows a formula of ours. Torch's ``FlopCounterMode`` counts the products of the reference
backends, a plain loop over experts and attention over the full square; of the latter only the visible
share is kept, which the brute-force mask says.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from toolkit.attention import Full, Pattern, attention
from toolkit.layers import Experts, SelfAttention
from toolkit.models import Decoder


@dataclass(frozen=True)
class Measured:
    """FLOPs per token that runs of the model counted.

    Attributes:
        forward_flops: of a forward in evaluation.
        training_flops: of a forward and backward in training.
    """

    forward_flops: float
    training_flops: float


@dataclass(frozen=True)
class _Call:
    """Shapes of one attention call, and the share of its square that is visible."""

    shapes: tuple[torch.Size, torch.Size, torch.Size]
    dtype: torch.dtype
    visible: float


def measure(decoder: Decoder, seq_len: int, batch_size: int = 1, seed: int = 0) -> Measured:
    """Count a forward in evaluation, and a forward and backward in training, in the ``exact`` convention.

    Of a copy of ``decoder`` on random tokens: the model, and torch's generators, are left as they were. What depends on
    data is counted as it came: second experts that GShard leaves out and tokens that capacity drops are not computed.
    Runs the reference backends on the decoder's device, so it is for small shapes. Layers that choose keys by content
    are counted with the gates they compute and mask, which ``exact`` leaves out. Layers that are computed again
    (:func:`toolkit.layers.recomputation.recompute_layers`) are counted as often as they are.

    Args:
        decoder: the model; its mode does not matter.
        seq_len: tokens in a sequence.
        batch_size: sequences.
        seed: of the tokens, and of what routers draw.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(decoder.config.vocab_size, (batch_size, seq_len), generator=generator)
    tokens = tokens.to(decoder.embedding.weight.device)
    calls: list[_Call] = []
    copy = _on_reference_backends(deepcopy(decoder), calls)
    devices = [tokens.device] if tokens.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        with torch.no_grad():
            _, evaluation = _counted(lambda: copy.eval()(tokens))
        evaluation -= sum((1 - call.visible) * _attention_flops(call)[0] for call in calls)
        calls.clear()
        logits, forward = _counted(lambda: copy.train()(tokens).logits)
        once = len(calls)  # those of layers that are computed again come after
        _, backward = _counted(lambda: logits.square().mean().backward())
    masked = sum((1 - call.visible) * sum(_attention_flops(call)) for call in calls[:once])
    masked += sum((1 - call.visible) * _attention_flops(call)[0] for call in calls[once:])
    return Measured(evaluation / tokens.numel(), (forward + backward - masked) / tokens.numel())


def _on_reference_backends(decoder: Decoder, calls: list[_Call]) -> Decoder:
    """The same, its attention's seam filled with a recorder, its experts set to the plain loop."""

    def record(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, **settings: Any) -> Tensor:
        where = {name: settings[name] for name in ("q_start", "kv_start") if name in settings}
        visible = pattern.mask(q.shape[2], k.shape[2], **where).double().mean().item()
        calls.append(_Call((q.shape, k.shape, v.shape), q.dtype, visible))
        return attention(q, k, v, pattern, **{**settings, "backend": "reference"})

    for module in decoder.modules():
        if isinstance(module, SelfAttention):
            module.attend = record
        elif isinstance(module, Experts):
            module.backend = "reference"
    return decoder


def _attention_flops(call: _Call) -> tuple[float, float]:
    """FLOPs of the reference attention alone at these shapes, forward and backward."""
    q, k, v = (torch.zeros(shape, dtype=call.dtype, requires_grad=True) for shape in call.shapes)
    out, forward = _counted(lambda: attention(q, k, v, Full(), backend="reference"))
    _, backward = _counted(lambda: out.sum().backward())
    return forward, backward


def _counted(run: Callable[[], Any]) -> tuple[Any, float]:
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, float(counter.get_total_flops())
