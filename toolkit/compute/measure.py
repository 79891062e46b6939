"""FLOPs counted while the model runs, to hold the closed forms against.

Nothing here knows a formula of ours. Torch's ``FlopCounterMode`` counts the products of the reference
backends, a plain loop over experts and attention over the full square; of the latter only the visible
share is kept, which the brute-force mask says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """FLOPs per token that a run of the model counted, forward and forward + backward."""

    forward_flops: float
    training_flops: float


@dataclass(frozen=True)
class _Call:
    """Shapes of one attention call, and the share of its square that is visible."""

    shapes: tuple[torch.Size, torch.Size, torch.Size]
    dtype: torch.dtype
    visible: float


def measure(decoder: Decoder, seq_len: int, batch_size: int = 1, seed: int = 0) -> Measured:
    """Count one forward and backward of ``decoder`` on random tokens, in the ``exact`` convention.

    Runs the reference backends on the decoder's device, so it is for small shapes. The model's
    gradients are cleared; its weights are left as they were. Layers that choose keys by content are counted
    with the gates they compute and mask, which ``exact`` leaves out.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(decoder.config.vocab_size, (batch_size, seq_len), generator=generator)
    tokens = tokens.to(decoder.embedding.weight.device)
    calls: list[_Call] = []
    with _reference_backends(decoder, calls):
        logits, forward = _counted(lambda: decoder(tokens).logits)
        _, backward = _counted(lambda: logits.square().mean().backward())
    decoder.zero_grad()
    for call in calls:
        core_forward, core_backward = _attention_flops(call)
        forward -= (1 - call.visible) * core_forward
        backward -= (1 - call.visible) * core_backward
    return Measured(forward / tokens.numel(), (forward + backward) / tokens.numel())


@contextmanager
def _reference_backends(decoder: Decoder, calls: list[_Call]) -> Iterator[None]:
    """Fill the attention's seam with a recorder, and set the experts to the plain loop, for a while."""
    attentions = [module for module in decoder.modules() if isinstance(module, SelfAttention)]
    experts = [module for module in decoder.modules() if isinstance(module, Experts)]
    attends, backends = [module.attend for module in attentions], [module.backend for module in experts]

    def record(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, **settings: Any) -> Tensor:
        where = {name: settings[name] for name in ("q_start", "kv_start") if name in settings}
        visible = pattern.mask(q.shape[2], k.shape[2], **where).double().mean().item()
        calls.append(_Call((q.shape, k.shape, v.shape), q.dtype, visible))
        return attention(q, k, v, pattern, **{**settings, "backend": "reference"})

    try:
        for module in attentions:
            module.attend = record
        for expert in experts:
            expert.backend = "reference"
        yield
    finally:
        for module, attend in zip(attentions, attends, strict=True):
            module.attend = attend
        for expert, backend in zip(experts, backends, strict=True):
            expert.backend = backend


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
