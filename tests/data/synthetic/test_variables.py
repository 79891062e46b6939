"""Hops are counted by following the statements, and every number of hops is asked of any chain."""

from __future__ import annotations

from collections import Counter

import pytest

from toolkit.data.synthetic import VariableTracking

TASK = VariableTracking(length=64, chains=3, hops=3, names=13, values=5, fillers=2)


def test_hops_and_gap_are_those_of_the_statements() -> None:
    batch = TASK.sample(50, 0)
    for row, tokens in enumerate(batch.input_ids.tolist()):
        lets = {tokens[place + 1]: (tokens[place + 2], place + 2) for place, token in enumerate(tokens) if token == 0}
        assert len(lets) == 12
        for turn, place in enumerate(batch.asked[row].tolist()):
            hops, (source, where) = 0, lets[tokens[place]]
            while source in lets:
                assert lets[source][1] < where
                hops, (source, where) = hops + 1, lets[source]
            assert hops == batch.meta["hops"][row, turn]
            assert place - where == batch.meta["gap"][row, turn]
        assert sorted(batch.meta["hops"][row].tolist()) == [0, 1, 2, 3]


def test_a_question_says_nothing_of_another() -> None:
    """Two questions of a row have one answer as often as two draws of a chain agree."""
    rows = 3000
    labels = TASK.sample(rows, 0).labels
    labels = labels[labels != -100].view(rows, -1)
    for one, other in ((0, 1), (1, 3)):
        same = int((labels[:, one] == labels[:, other]).sum())
        assert abs(same - rows / 3) < 5 * (rows * 2 / 9) ** 0.5
    assert len(Counter(labels.flatten().tolist())) == 5


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"length": 43}, "length=43.*at least 44"),
        ({"hops": -1}, "hops=-1"),
        ({"names": 11}, r"names=11.*chains \* \(hops \+ 1\) = 12"),
        ({"values": 2}, "values=2.*chains=3"),
        ({"chains": 0}, "chains=0"),
        ({"fillers": 0}, "fillers=0"),
    ],
)
def test_a_bad_setting_is_refused_by_name(settings: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        VariableTracking(**{"length": 64, "chains": 3, "hops": 3, **settings})
