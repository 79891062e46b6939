"""A plan's passes hold exactly the visible pairs, each once, each in an order in which it can be computed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from pattern_cases import BATCH, CASES, HEADS, PLACES, Case, Place, as_on_a_gpu, brute_force, held
from torch import Tensor

from toolkit.attention import patterns
from toolkit.attention.patterns import Causal, DilatedWindow, GlobalTokens, PerHead, SlidingWindow, Strided
from toolkit.attention.plan import PLANS, Pass, _kept, make_plan, plan, plan_area


def pairs_of(passes: tuple[Pass, ...], place: Place) -> Tensor:
    """How often each pair is in a pass: int (BATCH, HEADS, q_len, kv_len). Empty places must see nothing."""
    times = torch.zeros(BATCH, HEADS, place.q_len, place.kv_len, dtype=torch.int32)
    for part in passes:
        rows = torch.arange(place.q_len)[None, None] if part.rows is None else part.rows.long()
        columns = torch.arange(place.kv_len)[None, None] if part.columns is None else part.columns.long()
        heads = list(range(HEADS)) if part.heads is None else list(part.heads)
        shape = (BATCH, len(heads), part.n_rows, part.n_columns)
        seen = held(part, part.n_columns).expand(shape)
        rows = rows.expand(*shape[:2], -1)
        columns = columns.expand(*shape[:2], -1)
        for b in range(BATCH):
            for n, h in enumerate(heads):
                row, column = rows[b, n] >= 0, columns[b, n] >= 0
                assert not seen[b, n][~row].any() and not seen[b, n][:, ~column].any()
                for index in (rows[b, n][row], columns[b, n][column]):
                    assert len(index.unique()) == len(index), "a row or column twice in one pass"
                times[b, h].index_put_(
                    (rows[b, n][row][:, None], columns[b, n][column][None]),
                    seen[b, n][row][:, column].int(),
                    accumulate=True,
                )
    return times


def check_form(passes: tuple[Pass, ...]) -> None:
    """What kernels rely on."""
    for part in passes:
        assert {x.dtype for x in (part.first, part.stop)} == {torch.int32}
        assert part.first.shape == part.stop.shape and part.first.ndim == 4
        real = part.stop > part.first
        assert not (real[..., 1:] & ~real[..., :-1]).any(), "an empty slot before a real one"
        assert not (real[..., 1:] & (part.first[..., 1:] <= part.stop[..., :-1])).any(), (
            "slots out of order or touching"
        )
        assert (part.first[real] >= 0).all() and (part.stop[real] <= part.n_columns).all()
    for head in range(HEADS):
        mine = [part for part in passes if part.heads is None or head in part.heads]
        assert mine[0].complete
        if mine[0].rows is not None:
            assert (mine[0].rows.sort(dim=-1).values == torch.arange(mine[0].n_rows)).all()


@settings(max_examples=120)
@given(CASES, PLACES)
def test_passes_hold_every_visible_pair_once_and_no_other(case: Case, place: Place) -> None:
    place.fits(case.pattern)
    passes = plan(case.pattern, *place.args)
    check_form(passes)
    expected = brute_force(case, place)
    assert torch.equal(pairs_of(passes, place), expected.int())
    assert plan_area(passes, BATCH, HEADS) == int(expected.sum())


@settings(max_examples=100)
@given(CASES, PLACES)
def test_a_gpus_plan_waits_for_nothing_and_holds_the_same_pairs(case: Case, place: Place) -> None:
    place.fits(case.pattern)
    with as_on_a_gpu():
        passes = make_plan(case.pattern, *place.args)
    check_form(passes)
    assert torch.equal(pairs_of(passes, place), brute_force(case, place).int())


def test_dense_patterns_take_one_pass_in_plain_order() -> None:
    for pattern in (
        Causal(),
        Causal() & (SlidingWindow(5) | patterns.Sinks(2)),
        patterns.Documents.from_lengths([[9, 7]]),
    ):
        (part,) = plan(pattern, 16, 16)
        assert part.rows is None and part.columns is None and part.heads is None


def test_a_dilated_window_is_one_pass_sorted_by_class_with_one_run_a_row() -> None:
    (part,) = plan(Causal() & DilatedWindow(5, 3), 30, 30)
    assert part.slots == 1
    assert part.rows is not None and part.columns is not None
    assert (part.rows[0, 0] % 3).tolist() == sorted((part.rows[0, 0] % 3).tolist())
    assert part.columns.tolist() == part.rows.tolist()


def test_scattered_globals_are_gathered_and_their_own_rows_taken_out() -> None:
    places = [3, 11, 17, 25]
    local, gathered, own = plan(SlidingWindow(2) | GlobalTokens(positions=places), 30, 30)
    assert (local.rows, local.columns) == (None, None)
    assert own.rows is not None and own.rows.flatten().tolist() == places
    assert gathered.columns is not None and gathered.columns.flatten().tolist() == places


def test_a_row_that_sees_nothing_is_still_in_the_first_pass() -> None:
    (part,) = plan(~patterns.Full(), 3, 4)
    assert part.rows is None and part.n_rows == 3
    assert not (part.stop > part.first).any()


def test_heads_that_see_alike_share_their_passes() -> None:
    alike = PerHead([Causal(), Strided(4), Causal(), Strided(4)])
    assert {part.heads for part in plan(alike, 16, 16)} == {(0, 2), (1, 3)}
    packed = patterns.PerDocument(torch.zeros(16, dtype=torch.int64), alike)
    assert {part.heads for part in plan(packed, 16, 16)} == {(0, 2), (1, 3)}


def test_plans_are_kept_by_pattern_and_shape_and_not_without_bound() -> None:
    assert plan(Causal() & SlidingWindow(3), 8, 8) is plan(Causal() & SlidingWindow(3), 8, 8)
    assert plan(Causal(), 8, 8) is not plan(Causal(), 8, 9)
    blocks = torch.ones(1, 1, dtype=torch.bool)
    one, other = patterns.BlockMask(blocks, 8), patterns.BlockMask(blocks, 8)
    assert plan(one, 8, 8) is plan(one, 8, 8) is not plan(other, 8, 8)
    for width in range(1, PLANS + 20):
        plan(SlidingWindow(width), 4, 4)
    assert _kept.cache_info().currsize <= PLANS


def test_a_pass_moves_to_another_device_once() -> None:
    (part,) = plan(Causal(), 8, 8)
    meta = torch.device("meta")
    assert part.on(torch.device("cpu")) is part
    assert part.on(meta).first.device == meta
    assert part.on(meta) is part.on(meta)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("heads", [1, 4])
def test_area_counts_a_pattern_that_is_the_same_for_all_rows_and_heads_for_each(batch: int, heads: int) -> None:
    passes = plan(Causal(), 5, 5)
    assert plan_area(passes, batch, heads) == 15 * batch * heads
