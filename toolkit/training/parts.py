"""A process's part of a batch whose sequences several processes share."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from toolkit.checks import require
from toolkit.data import Examples, as_examples
from toolkit.parallel import Meshes
from toolkit.parallel.context import join_sequence, split_sequence


def own_part(batch: Tensor | Examples, meshes: Meshes | None) -> Tensor | Examples:
    """Windows (batch, context + 1) -> the tokens of them that this process takes, and what is asked of those.

    Where no process shares sequences, the batch as it is. The parts are as long as one another and ask for every token,
    so that the mean of the processes' mean losses is the batch's.

    Raises:
        ValueError: for Examples where sequences are shared: their rows may ask unevenly; or if the tokens cannot be
            shared evenly.
    """
    if meshes is None or meshes.config.context == 1:
        return batch
    require(isinstance(batch, Tensor), "mixture", "Examples", "None with context above 1: its rows ask unevenly")
    group = meshes.world["context"]
    return Examples(*(split_sequence(table, group) for table in as_examples(batch)))


def whole(part: Tensor, meshes: Meshes | None, dim: int = 1) -> Tensor:
    """The sequences that :func:`own_part` cut: ``dim`` is their tokens' axis; a collective call of who shares them."""
    if meshes is None or meshes.config.context == 1:
        return part
    return join_sequence(part, meshes.world["context"], dim=dim)


def of_the_first(sequences: Tensor, meshes: Meshes | None) -> Tensor:
    """The first process's whole sequences (batch, length), in every process; a collective call."""
    found = whole(sequences, meshes).clone()
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(found, 0)
    return found
