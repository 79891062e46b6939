"""The marked symbols are copied; gaps are from each to the position that asks for it."""

from __future__ import annotations

import pytest

from toolkit.data.synthetic import SelectiveCopy


def test_gaps_lead_from_the_question_to_the_marked_symbol() -> None:
    batch = SelectiveCopy(length=30, count=4, symbols=6).sample(40, 0)
    for row, tokens in enumerate(batch.input_ids.tolist()):
        for turn, place in enumerate(batch.asked[row].tolist()):
            source = place - int(batch.meta["gap"][row, turn])
            assert tokens[source - 1] == 0
            assert tokens[source] == batch.labels[row, place]
            assert tokens[:source].count(0) == turn + 1
    assert (batch.meta["order"].diff(dim=1) == 1).all()


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"length": 11}, "length=11.*3 count = 12"), ({"count": 0}, "count=0"), ({"symbols": 1}, "symbols=1")],
)
def test_a_bad_setting_is_refused_by_name(settings: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SelectiveCopy(**{"length": 30, "count": 4, "symbols": 6, **settings})
