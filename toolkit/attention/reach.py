"""Which tokens a stack of layers can bring to which: their masks, one after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.attention.patterns import Causal, Chunked, Pattern, Sinks, SlidingWindow
from toolkit.attention.selection import MoBA, NativeSparse
from toolkit.checks import require, require_positive


def reach(layers: Sequence[Pattern | MoBA | NativeSparse], length: int, *, certain: bool = False) -> Tensor:
    """Whether position j can have a part in what the layers give at position i: bool (length, length), row i.

    It can where a path leads from j to i that in each layer stays (the residual) or goes to a query from a key that it
    sees. Elsewhere the output at i does not depend on the token at j, and its gradient there is exactly 0. Heads and
    batch rows are taken together. Where keys are chosen by content the answer is of what *may* be chosen, all that
    came before; with ``certain`` of what is seen whatever is chosen: for ``MoBA`` a query's own block, for
    ``NativeSparse`` the window, the initial and local blocks and the compressed windows, for both everything while
    there are no more blocks than a query has choices.

    Args:
        layers: what attends in each layer, first to last.
        length: tokens.
        certain: take of keys chosen by content those that are always seen.

    Raises:
        ValueError: there is no layer, or ``length`` is not positive.

    >>> reach([Causal() & SlidingWindow(2)] * 2, 4).int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]]
    """
    require(len(layers) > 0, "layers", layers, "at least one")
    require_positive(length=length)
    reached = torch.eye(length, dtype=torch.bool)
    for layer in layers:
        seen = seen_pairs(layer, length, certain=certain) | torch.eye(length, dtype=torch.bool)
        reached = (seen.double() @ reached.double()) > 0
    return reached


def seen_pairs(layer: Pattern | MoBA | NativeSparse, length: int, *, certain: bool = False) -> Tensor:
    """The pairs that one layer sees in some head and batch row, bool (length, length); see :func:`reach`."""
    if isinstance(layer, Pattern):
        return layer.mask(length, length, device="cpu").reshape(-1, length, length).any(dim=0)
    if not certain:
        return Causal().mask(length, length)
    query, key = torch.arange(length)[:, None], torch.arange(length)
    always = Chunked(layer.block).mask(length, length)  # the own block
    if isinstance(layer, NativeSparse):
        local = (query // layer.block - layer.local + 1) * layer.block <= key
        always = always | SlidingWindow(layer.window).mask(length, length) | local | _compressed(layer, length)
        if layer.initial:
            always = always | Sinks(layer.initial * layer.block).mask(length, length)
    return (key <= query) & (always | (query // layer.block < layer.top_k))


def induction_distances(reached: Tensor) -> Tensor:
    """The distances at which the last position is reached by both tokens of a pair: bool (length,), by distance.

    For ``A B ... A`` with the two A ``distance`` apart (:class:`toolkit.data.synthetic.Induction`): whoever is not
    reached by A cannot tell which B is meant, nor which it is who is not reached by B. Distance 0 is never.

    Shapes: reached (length, length), of :func:`reach`.
    """
    distance = torch.arange(len(reached))
    first = len(reached) - 1 - distance
    return reached[-1, first] & reached[-1, (first + 1).clamp(max=len(reached) - 1)] & (distance > 0)


def reach_cut(distances: Tensor) -> int:
    """The longest distance up to which all from 2 on are reached: bool (length,) -> 1 if not even 2 is."""
    missed = (~distances[2:]).nonzero()
    return int(missed[0]) + 1 if len(missed) else len(distances) - 1


def _compressed(layer: NativeSparse, length: int) -> Tensor:
    """The pairs of a query and the keys of compressed windows that have ended: bool (length, length)."""
    query, key = torch.arange(length)[:, None], torch.arange(length)
    seen = torch.zeros(length, length, dtype=torch.bool)
    for start in range(0, length - layer.compress_block + 1, layer.stride):
        stop = start + layer.compress_block
        seen |= (query >= stop - 1) & (key >= start) & (key < stop)
    return seen
