"""A decoder made context-parallel in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from toolkit.attention import KeyValueCache
from toolkit.checks import require, require_choice
from toolkit.layers import SelfAttention
from toolkit.layers.attending import OverBranches, OverChosenBlocks, OverPattern
from toolkit.models import Decoder
from toolkit.parallel.context.cores import BranchesOverHeads, ChosenOverHeads, OverParts
from toolkit.parallel.context.layout import LAYOUTS
from toolkit.parallel.context.ring import RingAttention
from toolkit.parallel.context.sequences import part_of_sequences, require_even_padding
from toolkit.parallel.context.split import context_group
from toolkit.parallel.context.supported import require_parallel_model
from toolkit.parallel.context.ulysses import UlyssesAttention
from toolkit.routing.auxiliary_loss import AuxiliaryLoss

METHODS: dict[str, type[RingAttention] | type[UlyssesAttention]] = {"ring": RingAttention, "ulysses": UlyssesAttention}


def context_parallel(
    decoder: Decoder, mesh: dist.ProcessGroup | DeviceMesh, layout: str = "zigzag", method: str = "ring"
) -> Decoder:
    """Have a decoder take a part of every sequence on each rank, and compute what it would of the whole.

    Changes ``decoder`` in place, before it is wrapped, sharded or compiled (attention itself breaks the graph);
    parameters and their names stay. From then on ``decoder(input_ids, valid=..., sequence_ids=...)`` takes this rank's
    parts (:func:`split_sequence`) and returns its part of the logits. The ranks must hold the same weights; dropout is
    by the first rank's generator.
    Losses and gradients: :func:`toolkit.parallel.context.loss.context_cross_entropy`. Every rank's auxiliary losses are
    means over its own tokens; the ranks' mean is the whole's, so averaging gradients over ranks is right for them too.

    Args:
        decoder: a model of one process.
        mesh: the ranks that share a sequence: ``mesh["context"]``, or a process group.
        layout: ``"zigzag"``, which balances causal patterns, or ``"contiguous"``, which sends least for windows.
        method: ``"ring"`` moves keys and values, and takes any number of heads; ``"ulysses"`` shares out heads, and
            takes any pattern, those that choose keys by content among them.

    Returns:
        The same decoder.

    Raises:
        ValueError: if ``layout`` or ``method`` is unknown, or a layer would not compute the same, which is then named
            (:func:`toolkit.parallel.context.supported.require_parallel_model`); later, in forwards, with a cache (and
            so from ``generate``), or with padding that leaves ranks different numbers of real tokens where routers
            have losses.
    """
    require_choice("layout", layout, LAYOUTS)
    require_choice("method", method, tuple(METHODS))
    group = context_group(mesh)
    require_parallel_model(decoder, group.size(), method)
    attend = METHODS[method](group, layout)
    for layer in decoder.modules():
        if isinstance(layer, SelfAttention):
            layer.attend, layer.core = attend, _over_parts(layer.core)
    has_losses = any(isinstance(part, AuxiliaryLoss) for part in decoder.modules())
    decoder.register_forward_pre_hook(_Part(group, layout, has_losses), with_kwargs=True)
    return decoder


def _over_parts(core: nn.Module) -> nn.Module:
    """The same for parts of sequences; parameters are the same ones."""
    if isinstance(core, OverBranches):
        return BranchesOverHeads(core.branches)
    if isinstance(core, OverChosenBlocks):
        return ChosenOverHeads(core.selection, core.heads, core.head_dim)
    assert isinstance(core, OverPattern), "others are refused"
    return OverParts(core.pattern, core.heads, core.head_dim)


@dataclass(frozen=True, eq=False)
class _Part:
    """Tells a decoder, before each forward, what its tokens are a part of."""

    group: dist.ProcessGroup
    layout: str
    has_losses: bool

    def __call__(self, decoder: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return self._told(decoder.training, *args, **kwargs)

    def _told(
        self,
        training: bool,
        input_ids: Tensor,
        cache: KeyValueCache | None = None,
        *,
        valid: Tensor | None = None,
        sequence_ids: Tensor | None = None,
    ) -> tuple[Any, Any]:
        right = "None under context parallelism: a cache holds whole sequences; generate with a decoder of one process"
        require(cache is None, "cache", cache, right)
        require(input_ids.ndim == 2, "input_ids.shape", tuple(input_ids.shape), "(batch, length)")
        told = part_of_sequences(input_ids, self.group, self.layout, valid=valid, sequence_ids=sequence_ids)
        if told.valid is not None and training and self.has_losses:
            require_even_padding(told.valid, self.group)
        return (input_ids,), {"sequences": told}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Part:
        return self
