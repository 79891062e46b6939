"""Which part of a layer's parameters each process of a tensor group holds, as DTensors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from toolkit.checks import require
from toolkit.layers import FeedForward, SelfAttention
from toolkit.layers.attending import OverChosenBlocks, OverPattern
from toolkit.layers.experts import Experts
from toolkit.parallel.tensor.row_order import ATTRIBUTE, RowOrder


@dataclass(frozen=True)
class Share:
    """A process's part of one parameter.

    Attributes:
        dim: the axis it is cut along; None where every process has all of it.
        parts: sizes of the parts that are fused along ``dim``, each to be cut by itself; empty for one part.
        added: it is added to a partial sum, a bias behind a product: each process adds its 1 / tensor of it.
    """

    dim: int | None = None
    parts: tuple[int, ...] = ()
    added: bool = False


def shares(module: nn.Module, tensor: int) -> dict[str, Share]:
    """How the parameters of ``module`` itself, not of its children, are shared by ``tensor`` processes.

    Attention by heads, a feed-forward and every routed expert by hidden units: the first product by its rows, the
    second by its columns, so that the second gives partial sums. Routers and what else there is stay whole.

    Raises:
        ValueError: if heads or hidden units cannot be shared evenly, or attention has a part that is not per head.
    """
    found = {name: Share() for name, _ in module.named_parameters(recurse=False)}
    if isinstance(module, SelfAttention):
        found |= _of_attention(module, tensor)
    elif isinstance(module, (FeedForward, Experts)):
        found |= _of_feed_forward(module, tensor)
    return {name: share for name, share in found.items() if module._parameters.get(name) is not None}


def _of_attention(attention: SelfAttention, tensor: int) -> dict[str, Share]:
    for name in ("heads", "key_heads"):
        heads = getattr(attention, name)
        require(heads % tensor == 0, name, heads, f"a multiple of tensor={tensor}: {heads} / {tensor} is not whole")
    _require_by_head(attention, tensor)
    queries, keys = attention.heads * attention.head_dim, attention.key_heads * attention.head_dim
    return {"qkv_proj": Share(0, (queries, keys, keys)), "o_proj": Share(1), "sink_logits": Share(0)}


def _require_by_head(attention: SelfAttention, tensor: int) -> None:
    """Refuse what one head knows of the others."""
    alone = f"with tensor={tensor}"
    core, pattern = attention.core, attention.pattern
    right = f"a fixed pattern without global_projections, or MoBA, {alone}"
    require(isinstance(core, (OverPattern, OverChosenBlocks)), "pattern", pattern, right)
    planes = pattern.planes[1] if isinstance(core, OverPattern) else 1  # type: ignore[union-attr]  # it is a pattern
    require(planes == 1, "pattern", pattern, f"the same for every head {alone}")


def _of_feed_forward(layer: FeedForward | Experts, tensor: int) -> dict[str, Share]:
    hidden = layer.down_proj.shape[-1]
    right = f"a multiple of tensor={tensor}: {hidden} / {tensor} is not whole"
    require(hidden % tensor == 0, "hidden_dim", hidden, right)
    stacked = layer.down_proj.ndim - 2  # experts have an axis before
    parts = (hidden, hidden) if layer.activation.gated else ()
    first = layer._first
    return {
        first: Share(stacked, parts),
        f"{first}_bias": Share(stacked, parts),
        "down_proj": Share(stacked + 1),
        "down_proj_bias": Share(added=True),
    }


def distribute(module: nn.Module, mesh: DeviceMesh, found: dict[str, Share]) -> None:
    """Put DTensors in the place of ``module``'s parameters, each process keeping its own part; nothing is sent.

    Every process must hold the same values before.
    """
    orders: dict[str, RowOrder] = {}
    for name, share in found.items():
        parameter = module._parameters[name]
        assert parameter is not None, "shares() leaves those out"
        whole = parameter.detach()
        if share.parts:
            assert share.dim is not None, "parts are along an axis"
            orders[name] = RowOrder(share.dim, share.parts, mesh.size())
            whole = orders[name].to_ranks(whole)
        placement = Replicate() if share.dim is None else Shard(share.dim)
        sharded = distribute_tensor(whole, mesh, [placement], src_data_rank=None)
        module.register_parameter(name, nn.Parameter(sharded, requires_grad=parameter.requires_grad))
    if orders:
        setattr(module, ATTRIBUTE, orders)
