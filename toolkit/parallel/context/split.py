"""Sequences cut into the parts of a group's ranks, and put together again."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from toolkit.checks import require
from toolkit.models.decoder import IGNORED
from toolkit.parallel.context.layout import Layout


def context_group(group: dist.ProcessGroup | DeviceMesh) -> dist.ProcessGroup:
    """The process group of a mesh's one dimension (``mesh["context"]``), or the group itself.

    Raises:
        ValueError: if the mesh has several dimensions.
    """
    if isinstance(group, DeviceMesh):
        require(group.ndim == 1, "mesh", group.mesh_dim_names, 'of one dimension, such as mesh["context"]')
        return group.get_group()
    return group


def split_sequence(x: Tensor, group: dist.ProcessGroup | DeviceMesh, layout: str = "zigzag", dim: int = 1) -> Tensor:
    """This rank's part of x, which every rank has whole: token ids, labels, masks, anything with an axis of tokens.

    Labels are cut like inputs: shift them while they are whole (:func:`next_token_labels`), as the label of a part's
    last token is another part's first. Sends nothing.

    Args:
        x: of any shape; ``dim`` is its axis of tokens.
        group: the ranks that share a sequence, a group or a mesh of one dimension.
        layout: see :class:`Layout`.
        dim: the axis.

    Raises:
        ValueError: if the length of the axis cannot be shared evenly.
    """
    group = context_group(group)
    shared = Layout(layout, group.size(), x.shape[dim])
    return torch.cat([x.narrow(dim, start, stop - start) for start, stop in shared.chunks(group.rank())], dim=dim)


@torch.no_grad()
def join_sequence(x: Tensor, group: dist.ProcessGroup | DeviceMesh, layout: str = "zigzag", dim: int = 1) -> Tensor:
    """The whole of what :func:`split_sequence` cut, on every rank: an all-gather, through which no gradient flows."""
    group = context_group(group)
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, x.contiguous(), group=group)
    whole = torch.cat(parts, dim=dim)
    return whole.index_select(dim, Layout(layout, group.size(), whole.shape[dim]).place(x.device))


def sequence_positions(
    length: int,
    group: dist.ProcessGroup | DeviceMesh,
    layout: str = "zigzag",
    device: torch.device | str | None = None,
) -> Tensor:
    """Where this rank's tokens stand in a sequence of ``length``: int64 (length / ranks,), for rotary embeddings.

    Raises:
        ValueError: if the length cannot be shared evenly.
    """
    group = context_group(group)
    return Layout(layout, group.size(), length).positions(group.rank(), device)


def next_token_labels(input_ids: Tensor, sequence_ids: Tensor | None = None) -> Tensor:
    """Each token's next one, ``IGNORED`` (-100) for the last of a document: of whole rows, to be cut afterwards.

    Shapes: input_ids int64 (batch, length); sequence_ids int64 (batch, length), -1 for padding, None where a row is
    one document -> int64 (batch, length).

    >>> next_token_labels(torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1]])).tolist()
    [[6, -100, 8, -100]]
    """
    labels = torch.full_like(input_ids, IGNORED)
    labels[:, :-1] = input_ids[:, 1:]
    if sequence_ids is not None:
        within = (sequence_ids[:, 1:] == sequence_ids[:, :-1]) & (sequence_ids[:, 1:] >= 0)
        labels[:, :-1].masked_fill_(~within, IGNORED)
    return labels
