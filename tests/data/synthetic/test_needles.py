"""Keys and values of a row differ, and meta says where what is asked stands."""

from __future__ import annotations

import pytest

from toolkit.data.synthetic import Needles

MIXED = Needles(length=64, keys=4, values_per_key=3, queries=2, key_ids=5, value_ids=13, fillers=2)


def test_nothing_collides_by_accident() -> None:
    for tokens in MIXED.sample(60, 0).input_ids.tolist():
        needles = [place for place, token in enumerate(tokens) if token == 0]
        keys = [tokens[place + 1] for place in needles]
        assert sorted(map(keys.count, set(keys))) == [3] * 4
        assert len({tokens[place + 2] for place in needles}) == len(needles) == 12
        asked = [tokens[place + 1] for place, token in enumerate(tokens) if token == 1]
        assert len(set(asked)) == 2


def test_meta_says_where_the_asked_value_stands() -> None:
    batch = MIXED.sample(30, 0)
    haystack = 64 - 2 * 4
    for row, tokens in enumerate(batch.input_ids.tolist()):
        for turn, place in enumerate(batch.asked[row].tolist()):
            source = place - int(batch.meta["gap"][row, turn])
            assert tokens[source] == batch.labels[row, place]
            assert tokens[source - 2] == 0
            assert batch.meta["depth"][row, turn] == pytest.approx(source / (haystack - 1))


def test_chance_counts_out_what_is_told() -> None:
    """Two queries of three values each; the last value of a query is never told."""
    assert MIXED.chance == pytest.approx((1 / 13 + 1 / 12 + 1 / 11 + 1 / 11 + 1 / 10 + 1 / 9) / 6)
    assert MIXED.answer_chance == pytest.approx((1 / 13 / 12 / 11 + 1 / 11 / 10 / 9) / 2)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"length": 43}, "length=43.*at least 44"),
        ({"queries": 5}, "queries=5.*keys=4"),
        ({"queries": 0}, "queries=0"),
        ({"key_ids": 3}, "key_ids=3.*keys=4"),
        ({"value_ids": 11}, r"value_ids=11.*= 12"),
        ({"fillers": 0}, "fillers=0"),
        ({"values_per_key": 0}, "values_per_key=0"),
    ],
)
def test_a_bad_setting_is_refused_by_name(settings: dict[str, int], match: str) -> None:
    good = {"length": 64, "keys": 4, "values_per_key": 3, "queries": 2}
    with pytest.raises(ValueError, match=match):
        Needles(**{**good, **settings})
