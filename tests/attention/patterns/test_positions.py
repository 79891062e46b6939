"""Sets of positions, listed or marked."""

from __future__ import annotations

import pytest
import torch
from pattern_cases import as_on_a_gpu

from toolkit.attention.intervals import FAR
from toolkit.attention.patterns.positions import Marks, Positions

MASK = torch.tensor([[True, False, False, True, False], [False, False, False, False, True]])


def test_listed_positions_are_sorted_once_each() -> None:
    tokens = Positions.of([700, 2, 2, 40])
    assert tokens.values == (2, 40, 700)
    assert tokens.listed(None).tolist() == [2, 40, 700]
    assert tokens.holds(torch.arange(900)[None])[0].nonzero().flatten().tolist() == [2, 40, 700]
    assert tokens == Positions.of((40, 700, 2))


def test_marks_are_listed_row_by_row_and_filled_up() -> None:
    tokens = Marks.of(MASK)
    assert (tokens.batch, tokens.device) == (2, MASK.device)
    assert tokens.listed(None).tolist() == [[[0, 3]], [[4, FAR]]]
    assert torch.equal(tokens.holds(torch.arange(5)[None])[:, 0, 0], MASK)
    with as_on_a_gpu():
        assert tokens.listed(None).shape == (2, 1, 5)


@pytest.mark.parametrize("tokens", [Positions.of([3]), Marks.of(MASK)])
def test_holds_keeps_the_shape_of_rows_and_columns(tokens: Positions | Marks) -> None:
    place = torch.tensor([[3], [4]])
    seen = tokens.holds(place)
    assert seen.shape[-2:] == (2, 1)
    assert seen.reshape(-1, 2)[0].tolist() == [True, False]


def test_tokens_they_say_nothing_of_are_refused() -> None:
    Positions.of([3]).check(4, 4)
    Marks.of(MASK).check(5, 5)
    with pytest.raises(ValueError, match="positions=3: it must be below the number of tokens, 3"):
        Positions.of([3]).check(3, 3)
    for where in ((6, 5), (5, 6)):
        with pytest.raises(ValueError, match="mask length=5: it must be at least 6"):
            Marks.of(MASK).check(*where)
