"""A process's part of a batch whose sequences several processes share."""

from __future__ import annotations

from torch import Tensor

from toolkit.checks import require
from toolkit.data import Examples, as_examples
from toolkit.parallel import Meshes
from toolkit.parallel.context import split_sequence


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
