"""Draws are uniform where they say so, and the same for the same key."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable

import numpy as np
import pytest

from toolkit.data.synthetic.draws import Draws

TIMES = 4000


def close(found: Iterable[Hashable], expected: dict[Hashable, float]) -> None:
    """Each frequency is within five standard deviations of its probability, and nothing else occurs."""
    counts = Counter(found)
    assert set(counts) <= set(expected)
    for outcome, chance in expected.items():
        assert abs(counts[outcome] - TIMES * chance) < 5 * math.sqrt(TIMES * chance * (1 - chance)), outcome


def test_keys_decide() -> None:
    first, again, other = (Draws(key).integers(2**32, 50) for key in ("a 1", "a 1", "a 2"))
    assert np.array_equal(first, again)
    assert not np.isin(first, other).any()


def test_orders_are_uniform() -> None:
    draws = Draws("orders")
    orders = list(itertools.permutations(range(4), 2))
    close((tuple(draws.distinct(4, 2).tolist()) for _ in range(TIMES)), {order: 1 / len(orders) for order in orders})


def test_integers_are_uniform() -> None:
    draws = Draws("integers")
    close(draws.integers(7, TIMES).tolist(), dict.fromkeys(range(7), 1 / 7))
    assert 0 <= draws.integer(3) < 3
    uniform = draws.uniform(TIMES)
    assert 0 < uniform.min() < uniform.max() < 1
    close((uniform * 5).astype(int).tolist(), dict.fromkeys(range(5), 1 / 5))


@pytest.mark.parametrize(("room", "blocks", "size"), [(7, 2, 2), (7, 2, 3), (5, 3, 1), (8, 2, 3)])
def test_arrangements_of_blocks_are_uniform(room: int, blocks: int, size: int) -> None:
    draws = Draws("blocks")
    possible = [
        starts
        for starts in itertools.combinations(range(room - size + 1), blocks)
        if all(b - a >= size for a, b in itertools.pairwise(starts))
    ]
    found = (tuple(draws.starts(room, blocks, size).tolist()) for _ in range(TIMES))
    close(found, {starts: 1 / len(possible) for starts in possible})


def test_weighted_draws_are_successive_draws_without_replacement() -> None:
    draws, weights = Draws("weights"), np.array([4.0, 2.0, 1.0])
    expected: dict[Hashable, float] = Counter()
    for first, second in itertools.permutations(range(3), 2):
        chance = weights[first] / 7 * weights[second] / (7 - weights[first])
        expected[tuple(sorted((first, second)))] += chance
    close((tuple(draws.weighted(weights, 2).tolist()) for _ in range(TIMES)), expected)


def test_shuffling_keeps_the_values() -> None:
    values = np.array([3, 3, 5, 8])
    assert sorted(Draws("shuffle").shuffled(values).tolist()) == values.tolist()
