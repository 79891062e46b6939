"""Activation checkpointing: what a layer keeps for its backward pass, and what it computes again there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from toolkit.attention import operator as _attention  # noqa: F401  # registers toolkit::attention
from toolkit.checks import require
from toolkit.layers.block import Block
from toolkit.layers.depths import MixtureOfDepths
from toolkit.layers.experts import operator as _experts  # noqa: F401  # registers toolkit::experts
from toolkit.layers.feed_forward import FeedForward
from toolkit.layers.moe import MoE
from toolkit.routing import SoftRouter, recomputing

RECOMPUTE = ("none", "full", "selective")
"""Policies by name; a number k is every k-th layer."""

Recompute = str | int


def require_recompute(recompute: Recompute) -> None:
    """Refuse what is no policy.

    Raises:
        ValueError: naming those there are.
    """
    every = isinstance(recompute, int) and not isinstance(recompute, bool) and recompute > 0
    right = "'none', 'full', 'selective', or k > 0 for every k-th layer"
    require(every or recompute in RECOMPUTE, "recompute", recompute, right)


def layer_policies(recompute: Recompute, layers: int) -> list[str]:
    """What each of ``layers`` layers does, first to last: ``"none"``, ``"full"`` or ``"selective"``.

    Of every k layers the last is computed again, so that 1 is ``"full"``.

    Raises:
        ValueError: if ``recompute`` is no policy.

    >>> layer_policies(2, 5)
    ['none', 'full', 'none', 'full', 'none']
    """
    require_recompute(recompute)
    if isinstance(recompute, str):
        return [recompute] * layers
    return ["none" if (layer + 1) % recompute else "full" for layer in range(layers)]


def recompute_layers(model: nn.Module, recompute: Recompute) -> None:
    """Have the layers of ``model`` (its :class:`Block` and :class:`MixtureOfDepths`) computed again, in place.

    ``"full"`` keeps a layer's input alone. ``"selective"`` keeps besides what is dear to compute: the outputs of matrix
    products, of attention and of experts (:func:`kept_operators`); norms, activations, rotations, casts and routing
    are computed again. A number k is ``"full"`` for every k-th layer and ``"none"`` for the others. ``"none"`` undoes
    the rest.

    Values are those of the plain layer, bit for bit: random numbers and autocast are as in the first forward, routers
    count tokens once, and losses that ride on the layer's output get their gradient from whoever gives it the output's.
    The layer's parameters, hooks and names stay as they are, so it may be sharded or shared before or after. Where
    experts are shared by processes, their tokens travel again in the backward pass.

    Raises:
        ValueError: if ``recompute`` is no policy.

    Source: Chen et al. 2016 (arXiv 1604.06174); selective: Korthikanti et al. 2022 (arXiv 2205.05198), section 5, who
    compute attention's scores again, which a fused attention never keeps.
    """
    found = [part for part in model.modules() if isinstance(part, (Block, MixtureOfDepths))]
    inside = {id(part.block) for part in found if isinstance(part, MixtureOfDepths)}
    layers = [layer for layer in found if id(layer) not in inside]
    for layer, policy in zip(layers, layer_policies(recompute, len(layers)), strict=True):
        layer.__dict__.pop("forward", None)
        if policy != "none":
            layer.forward = Recomputed(layer, policy)  # type: ignore[method-assign]


def rerun_products(layer: nn.Module, policy: str, seq_len: int) -> int:
    """Multiply-adds that a layer's backward pass computes again of its forward over one sequence of training.

    ``"selective"`` keeps what products gave. ``"full"`` computes the layer again up to what the backward pass reads
    last: where the layer's output is that of a product alone, that product is left out.

    Args:
        layer: a :class:`Block` or :class:`MixtureOfDepths`.
        policy: of :func:`layer_policies`.
        seq_len: tokens.
    """
    if policy != "full":
        return 0
    parts = layer.work(seq_len)  # type: ignore[operator]  # it is one of the two
    forward = sum(part.computed for part in parts if part.phase != "evaluation")
    return int(forward) - (_last_product(layer.feed_forward, seq_len) if isinstance(layer, Block) else 0)


def _last_product(layer: nn.Module, seq_len: int) -> int:
    """Multiply-adds of the product whose output nothing but the sum with the stream reads; 0 if something does."""
    if isinstance(layer, FeedForward):
        return seq_len * layer.down_proj.numel()
    if not isinstance(layer, MoE) or layer.zero_experts is not None or layer.shared_gate is not None:
        return 0
    if layer.shared is not None:
        return _last_product(layer.shared, seq_len)
    soft = isinstance(layer.router, SoftRouter)
    return seq_len * layer.router.rows(seq_len) * layer.experts.weights.first.shape[-1] if soft else 0  # type: ignore


@cache
def kept_operators() -> frozenset[Any]:
    """The operators whose outputs ``"selective"`` keeps: products, attention, experts."""
    aten, own = torch.ops.aten, torch.ops.toolkit
    products = aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten._grouped_mm
    return frozenset(packet.default for packet in (*products, own.attention, own.experts))


@dataclass(eq=False)
class Recomputed:
    """A layer's forward that keeps little and is run again in the backward pass.

    Attributes:
        layer: whose class has the plain forward.
        policy: ``"full"`` or ``"selective"``.
    """

    layer: nn.Module
    policy: str

    def __call__(self, *args: Any, **settings: Any) -> Tensor:
        """What the plain forward gives; it itself where no gradient is wanted."""
        if not torch.is_grad_enabled():
            return self._forward(*args, **settings)
        how: dict[str, Any] = {}
        if self.policy == "selective":
            how["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
        out: Tensor = checkpoint(self._forward, *args, use_reentrant=False, **how, **settings)
        return out

    def _forward(self, *args: Any, **settings: Any) -> Tensor:
        with _shown_as_before(self.layer):
            out: Tensor = type(self.layer).forward(self.layer, *args, **settings)
        return out


def _policy(_: Any, operator: Any, *args: Any, **settings: Any) -> CheckpointPolicy:
    kept = operator in kept_operators()
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _shown_as_before(layer: nn.Module) -> Iterator[None]:
    """A rerun leaves no trace in what layers show of their last forward: it would keep the rerun's graph alive."""
    if not recomputing():
        yield
        return
    names = [(part, "_choice" if isinstance(part, MixtureOfDepths) else "_assignment") for part in layer.modules()]
    before = [(part, name, getattr(part, name)) for part, name in names if isinstance(part, (MoE, MixtureOfDepths))]
    try:
        yield
    finally:
        for part, name, value in before:
            setattr(part, name, value)
