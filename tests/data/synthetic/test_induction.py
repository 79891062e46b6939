"""The distance between the two A is exactly what was asked, and nothing else tells B."""

from __future__ import annotations

from collections import Counter

import pytest

from toolkit.data.synthetic import Induction


@pytest.mark.parametrize("distance", [2, 3, 17, 31])
def test_the_distance_is_exact_and_a_occurs_twice_only(distance: int) -> None:
    batch = Induction(length=32, distance=distance, symbols=5).sample(50, 0)
    for tokens, label in zip(batch.input_ids.tolist(), batch.labels[:, -1].tolist(), strict=True):
        places = [place for place, token in enumerate(tokens) if token == tokens[-1]]
        assert places == [31 - distance, 31]
        assert label == tokens[32 - distance]
    assert batch.meta["distance"].tolist() == [distance] * 50
    assert (batch.labels[:, :-1] == -100).all()


def test_a_range_draws_every_distance_equally_often() -> None:
    rows = 3000
    batch = Induction(length=16, distance=(4, 9), symbols=8).sample(rows, 0)
    distances = batch.meta["distance"].tolist()
    for tokens, distance in zip(batch.input_ids.tolist(), distances, strict=True):
        assert tokens.index(tokens[-1]) == 15 - distance
    counts = Counter(distances)
    assert set(counts) == set(range(4, 10))
    for count in counts.values():
        assert abs(count - rows / 6) < 5 * (rows * 5 / 36) ** 0.5


def test_b_is_independent_of_what_stands_elsewhere() -> None:
    """Given A and the token after B, every symbol but A is B equally often."""
    rows = 6000
    batch = Induction(length=8, distance=4, symbols=4).sample(rows, 0)
    seen = Counter(
        (row[-1], row[5], label)
        for row, label in zip(batch.input_ids.tolist(), batch.labels[:, -1].tolist(), strict=True)
    )
    assert len(seen) == 4 * 3 * 3
    chance = 1 / len(seen)
    for count in seen.values():
        assert abs(count - rows * chance) < 5 * (rows * chance) ** 0.5


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"distance": 1}, "distance=1.*between 2 and length - 1 = 15"),
        ({"distance": 16}, "distance=16"),
        ({"distance": (9, 4)}, r"distance=\(9, 4\)"),
        ({"distance": (2, 16)}, r"distance=\(2, 16\)"),
        ({"distance": (2, 3, 4)}, r"distance=\(2, 3, 4\).*lowest and the highest"),
        ({"distance": 2.5}, "distance=2.5"),
        ({"symbols": 2}, "symbols=2"),
        ({"length": 0}, "length=0"),
    ],
)
def test_a_bad_setting_is_refused_by_name(settings: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Induction(**{"length": 16, "distance": 4, "symbols": 8, **settings})  # type: ignore[arg-type]


def test_a_list_is_a_range_too() -> None:
    assert Induction(length=16, distance=[2, 5]) == Induction(length=16, distance=(2, 5))  # type: ignore[arg-type]
