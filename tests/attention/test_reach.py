"""Reach against paths walked one by one, against the window's formula, and against what selections really attend to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toolkit.attention import (
    Causal,
    Chunked,
    DilatedWindow,
    Full,
    GlobalTokens,
    Pattern,
    PerHead,
    RandomBlocks,
    Sinks,
    SlidingWindow,
    Strided,
)
from toolkit.attention.reach import induction_distances, reach, reach_cut, seen_pairs
from toolkit.attention.selection import MoBA, NativeSparse

WINDOW = Causal() & SlidingWindow(3)
STACKS: dict[str, list[Pattern]] = {
    "sliding": [WINDOW] * 3,
    "last-full": [WINDOW, WINDOW, Causal()],
    "sinks": [Causal() & (SlidingWindow(3) | Sinks(2))] * 3,
    "globals": [Causal() & (SlidingWindow(3) | GlobalTokens(positions=[4, 11]))] * 2,
    "dilated": [WINDOW, Causal() & DilatedWindow(3, 2), Causal() & DilatedWindow(2, 5)],
    "strided": [Causal() & Strided(4)] * 2,
    "random": [Causal() & (Chunked(4) | RandomBlocks(1, block=4, seed=seed, causal=True)) for seed in (1, 2)],
    "heads": [PerHead([WINDOW, Causal() & DilatedWindow(2, 7)])] * 2,
    "both-ways": [SlidingWindow(2)] * 3,
    "strictly-before": [Causal() & ~SlidingWindow(1) & SlidingWindow(4)] * 2,
}
SELECTIONS = (
    MoBA(block=4, top_k=2),
    MoBA(block=4, top_k=9),
    NativeSparse(block=4, top_k=3, compress_block=4, stride=2, window=3, initial=1, local=1),
    NativeSparse(block=4, top_k=2, compress_block=8, stride=4, window=5, initial=0, local=1),
)


def walked(layers: list[Pattern], length: int, start: int) -> set[int]:
    """Where what stands at ``start`` can be after the layers, by following the visible pairs from set to set."""
    there = {start}
    for layer in layers:
        mask = layer.mask(length, length)
        mask = mask if mask.ndim == 2 else mask.flatten(0, -3).any(dim=0)
        there |= {query for query in range(length) for key in there if mask[query, key]}
    return there


@pytest.mark.parametrize("name", STACKS)
def test_reach_is_where_paths_lead(name: str) -> None:
    reached = reach(STACKS[name], 17)
    for start in range(17):
        assert set(reached[:, start].nonzero().flatten().tolist()) == walked(STACKS[name], 17, start)


@pytest.mark.parametrize(("layers", "width"), [(1, 4), (2, 3), (3, 3), (4, 1), (3, 12)])
def test_windows_reach_layers_times_width_less_one(layers: int, width: int) -> None:
    reached = reach([Causal() & SlidingWindow(width)] * layers, 30)
    distance = torch.arange(30)[:, None] - torch.arange(30)
    assert torch.equal(reached, (distance >= 0) & (distance <= layers * (width - 1)))
    farthest = min(layers * (width - 1), 29)
    assert reach_cut(induction_distances(reached)) == max(farthest, 1)


def test_sinks_and_leading_globals_lengthen_nothing_but_their_own_reach() -> None:
    plain = reach([WINDOW] * 3, 30)
    for leading in (Sinks(2), GlobalTokens(positions=[0, 1])):
        reached = reach([Causal() & (SlidingWindow(3) | leading)] * 3, 30)
        assert torch.equal(reached[:, 2:], plain[:, 2:])
        assert reached[:, 0].all()


def test_a_scattered_global_relays_what_came_before_it_to_what_comes_after() -> None:
    reached = reach([Causal() & (SlidingWindow(2) | GlobalTokens(positions=[10]))] * 2, 20)
    assert reached[10:, :11].all()
    assert not reached[19, 11:17].any()
    assert not reached[9, :7].any()


def test_distances_need_both_of_the_pair() -> None:
    reached = torch.zeros(6, 6, dtype=torch.bool)
    reached[5] = torch.tensor([1, 1, 0, 1, 1, 1], dtype=torch.bool)
    assert induction_distances(reached).tolist() == [False, True, True, False, False, True]
    assert reach_cut(induction_distances(reached)) == 2
    assert reach_cut(torch.tensor([False, True, False, True])) == 1
    assert reach_cut(torch.tensor([False, True, True, True])) == 3


def attended(layer: MoBA | NativeSparse, length: int, seed: int) -> Tensor:
    """The pairs whose value has a gradient in the query's output, found one query at a time."""
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, 1, 1, length, 4, dtype=torch.float64)
    v.requires_grad_()
    gates = () if isinstance(layer, MoBA) else (torch.rand(1, 1, length, 3, dtype=torch.float64),)
    out = layer.attend(q, k, v, *gates)  # type: ignore[arg-type]
    rows = [torch.autograd.grad(out[0, 0, i].sum(), v, retain_graph=True)[0] for i in range(length)]
    return torch.stack([row[0, 0].abs().sum(dim=-1) > 0 for row in rows])


@pytest.mark.parametrize("layer", SELECTIONS, ids=str)
def test_what_is_chosen_lies_between_what_is_certain_and_what_is_possible(layer: MoBA | NativeSparse) -> None:
    certain, possible = (seen_pairs(layer, 22, certain=one) for one in (True, False))
    draws = torch.stack([attended(layer, 22, seed) for seed in range(24)])
    assert torch.equal(draws.all(dim=0), certain)  # what no draw spares is certain
    assert torch.equal(possible, Causal().mask(22, 22))
    assert not (draws.any(dim=0) & ~possible).any()
    assert torch.equal(draws.any(dim=0), possible)  # and what is possible happens


def test_bad_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="layers=.*at least one"):
        reach([], 4)
    with pytest.raises(ValueError, match="length=0"):
        reach([Full()], 0)
