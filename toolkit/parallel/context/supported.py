"""What of a model would not compute the same on parts of sequences, refused by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from toolkit.attention import Pattern, attention
from toolkit.checks import require
from toolkit.layers import MixtureOfDepths, MoE, SelfAttention
from toolkit.layers.attending import OverBranches, OverChosenBlocks, OverPattern
from toolkit.layers.global_rows import WithGlobalRows
from toolkit.parallel.context.schedule import require_by_position
from toolkit.routing import GShardRouter, HashRouter, LoadBalancingLoss, RouterZLoss, SwitchRouter, TopKRouter

TOKEN_ROUTERS = (TopKRouter, SwitchRouter, HashRouter, GShardRouter)
"""Routers that choose for each token by itself. Others (expert choice, Sinkhorn, soft slots) look at all the
tokens they are given, or draw by place among them, and would see a part of them."""


def require_parallel_model(model: nn.Module, ranks: int, method: str) -> None:
    """Refuse a model of which a layer would not give what it gives to whole sequences.

    Raises:
        ValueError: naming the layer's path, the setting, and what would be right.
    """
    for path, module in model.named_modules():
        if isinstance(module, MixtureOfDepths):
            right = "a plain Block: it chooses among a whole sequence's tokens"
            require(False, path, type(module).__name__, right)
        elif isinstance(module, SelfAttention):
            _check_attention(path, module, ranks, method)
        elif isinstance(module, MoE):
            _check_experts(path, module)


def _check_attention(path: str, layer: SelfAttention, ranks: int, method: str) -> None:
    core = layer.core
    require(layer.attend is attention, f"{path}.attend", layer.attend, "attention: the seam is taken already")
    able = not isinstance(core, WithGlobalRows)
    require(able, f"{path}.global_projections", True, "False: global rows see the whole sequence")
    able = layer.rope is None or not layer.rope.depends_on_length
    scaling = None if layer.rope is None else layer.rope.scaling
    require(able, f"{path}.rope.scaling", scaling, "one that no length changes: a rank knows its part's only")
    if method == "ring":
        right = "a fixed pattern with context_method='ring'; 'ulysses' has whole sequences to choose keys from"
        require(isinstance(core, OverPattern), f"{path}.pattern", layer.pattern, right)
        assert isinstance(layer.pattern, Pattern)
        require_by_position(layer.pattern)
        return
    known = isinstance(core, (OverPattern, OverChosenBlocks, OverBranches))
    require(known, f"{path}.core", type(core).__name__, "one of a SelfAttention's own")
    if isinstance(core, OverBranches):
        right = f"a multiple of {ranks} ranks: query heads that share a key head choose blocks together"
        require(layer.kv_heads % ranks == 0, f"{path}.kv_heads", layer.kv_heads, right)


def _check_experts(path: str, layer: MoE) -> None:
    router: Any = layer.router
    random = isinstance(router, GShardRouter) and router.second == "random"
    right = "one that chooses for each token by itself, without draws: " + ", ".join(
        kind.__name__ for kind in TOKEN_ROUTERS
    )
    known = type(router) in TOKEN_ROUTERS and not random
    require(
        known, f"{path}.router", f"{type(router).__name__}(second='random')" if random else type(router).__name__, right
    )
    require(router.noise is None, f"{path}.router.noise", router.noise, "None: it is drawn by place in a rank's tokens")
    names = [type(change).__name__ for change in layer.adjust]
    require(not names, f"{path}.adjust", names, "empty, and capacity_factor None: they count the tokens of a rank")
    for loss in router.losses:
        able = isinstance(loss, RouterZLoss) or (isinstance(loss, LoadBalancingLoss) and loss.over == "global")
        right = (
            "LoadBalancingLoss(over='global') or RouterZLoss(): others are of a rank's tokens, not of the sequence's"
        )
        require(able, f"{path}.router.losses", loss, right)
