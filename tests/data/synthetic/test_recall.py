"""Pairs first, each key once more, filler of its own, and gaps by the power law."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.data.synthetic import MQAR

TASK = MQAR(length=64, pairs=5, keys=9, values=7, fillers=3)


def test_each_key_stands_twice_and_each_value_once_all_else_is_filler() -> None:
    batch = TASK.sample(60, 0)
    for tokens in batch.input_ids.numpy():
        keys, values = tokens[tokens < 9], tokens[(tokens >= 9) & (tokens < 16)]
        assert sorted(np.unique(keys, return_counts=True)[1]) == [2] * 5
        assert len(set(values)) == len(values) == 5
        assert set(np.flatnonzero((tokens >= 9) & (tokens < 16))) == set(range(1, 10, 2))


def test_the_gap_is_between_a_keys_two_places() -> None:
    batch = TASK.sample(30, 0)
    for tokens, asked, gaps in zip(
        batch.input_ids.tolist(), batch.asked.tolist(), batch.meta["gap"].tolist(), strict=True
    ):
        assert gaps == [place - tokens.index(tokens[place]) for place in asked]


@pytest.mark.parametrize("power", [0.01, 1.0, 3.0])
def test_one_querys_slot_follows_the_power_law(power: float) -> None:
    rows = 4000
    batch = MQAR(length=18, pairs=1, keys=2, values=2, fillers=2, power=power).sample(rows, 0)
    counts = np.bincount((batch.asked[:, 0].numpy() - 2) // 2, minlength=8)
    law = np.arange(1, 9) ** (power - 1)
    law = law / law.sum()
    assert (np.abs(counts - rows * law) < 5 * np.sqrt(rows * law * (1 - law))).all()


def test_a_keys_slot_does_not_depend_on_its_place_among_the_pairs() -> None:
    """In zoology's code the first pairs get the nearer slots."""
    batch = MQAR(length=40, pairs=4, keys=4, values=4, fillers=2).sample(3000, 0)
    owner = (batch.asked - batch.meta["gap"]) // 2  # which pair each query, in order, asks for
    for query in range(4):
        counts = np.bincount(owner[:, query].numpy(), minlength=4)
        assert (np.abs(counts - 750) < 5 * np.sqrt(3000 * 3 / 16)).all()


def test_the_tightest_fit_asks_at_every_second_place() -> None:
    batch = MQAR(length=16, pairs=4, keys=4, values=4, fillers=1).sample(3, 0)
    assert batch.asked.tolist() == [[8, 10, 12, 14]] * 3


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"length": 19}, "length=19.*at least 4 pairs = 20"),
        ({"keys": 4}, "keys=4.*pairs=5"),
        ({"values": 4}, "values=4.*pairs=5"),
        ({"fillers": 0}, "fillers=0"),
        ({"power": 0.0}, "power=0.0"),
        ({"pairs": 0}, "pairs=0"),
    ],
)
def test_a_bad_setting_is_refused_by_name(settings: dict[str, float], match: str) -> None:
    good = {"length": 64, "pairs": 5, "keys": 9, "values": 7, "fillers": 3}
    with pytest.raises(ValueError, match=match):
        MQAR(**{**good, **settings})  # type: ignore[arg-type]
