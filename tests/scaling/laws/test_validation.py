"""Held-out errors against loops written out, and forms ranked by what they predict."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from synthetic_laws import DATA, KNOWN, measured, table

from toolkit.scaling.document import markdown_table
from toolkit.scaling.laws import (
    Chinchilla,
    Form,
    Granularity,
    OneExponent,
    Runs,
    Score,
    Selection,
    SelectionTable,
    SharedExponents,
    SharedIrreducible,
    cross_validate,
    fit_form,
    rollout,
    select,
)

CHINCHILLA, CONSTANTS = KNOWN[0]
NOISY = measured(CHINCHILLA, CONSTANTS, noise=0.01, runs=table(30))


def log_errors(fitted_to: Runs, scored_on: Runs) -> np.ndarray:
    return np.log(scored_on.loss) - np.log(fit_form(CHINCHILLA, fitted_to).predict(scored_on))


def test_as_many_folds_as_runs_leave_one_out_at_a_time() -> None:
    errors = [log_errors(NOISY.where(np.arange(30) != at), NOISY.where(np.arange(30) == at))[0] for at in range(30)]
    score = cross_validate(CHINCHILLA, NOISY, folds=30)
    assert score.error == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-6)
    assert sorted(score.folds) == pytest.approx(sorted(np.abs(errors)), rel=1e-5)
    squares = np.square(errors)
    assert score.standard_error == pytest.approx(squares.std(ddof=1) / np.sqrt(30) / (2 * score.error), rel=1e-5)


def test_seeds_of_a_cell_are_held_out_together() -> None:
    """With a copy of each run as another seed, folds that split cells would know the answer; these know as little."""
    wild = measured(CHINCHILLA, CONSTANTS, noise=0.1, runs=table(12))
    columns = {name: np.tile(getattr(wild, name), 2) for name in ("active", "tokens", "loss")}
    alone = cross_validate(CHINCHILLA, Runs.of(wild.active, wild.tokens, wild.loss, family="one"), folds=12)
    cells = cross_validate(CHINCHILLA, Runs.of(**columns, group=np.tile(wild.group, 2).tolist()), folds=12)
    split = cross_validate(CHINCHILLA, Runs.of(**columns), folds=12)
    assert cells.error == pytest.approx(alone.error, rel=1e-4)
    assert split.error < 0.8 * cells.error


def test_the_held_out_error_is_about_the_noise_and_the_seeds_own() -> None:
    one, again, other = (cross_validate(CHINCHILLA, NOISY, seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    assert one.error == pytest.approx(0.01, rel=0.5)
    assert cross_validate(CHINCHILLA, measured(CHINCHILLA, CONSTANTS)).error < 1e-8


def test_every_family_is_in_every_fold() -> None:
    """Or a form of families could not predict it: with two groups of each family, two folds hold one of each."""
    form, constants = KNOWN[3]
    runs = measured(form, constants, runs=table(36))
    paired = replace(
        runs, group=np.array([f"{family}{at % 2}" for family, at in zip(runs.family, np.arange(36) // 3, strict=True)])
    )
    assert cross_validate(SharedExponents(), paired, folds=2).error < 1e-6


def test_a_rollout_fits_up_to_each_cut_and_scores_above() -> None:
    cuts = np.sort(NOISY.active)[[14, 22]].tolist()
    for found, cut in zip(rollout(CHINCHILLA, NOISY, "active", cuts=cuts), cuts, strict=True):
        small = NOISY.active <= cut
        errors = log_errors(NOISY.where(small), NOISY.where(~small))
        assert (found.cut, found.fitted, found.scored) == (cut, small.sum(), 30 - small.sum())
        assert found.error == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-6)
        assert found.bias == pytest.approx(errors.mean(), rel=1e-5)


def test_a_rollout_says_why_the_smallest_cuts_are_not_fitted() -> None:
    found = rollout(CHINCHILLA, NOISY, "tokens")
    assert len(found) == 29
    assert all("runs=" in cut.reason and np.isnan(cut.error) for cut in found[:4])
    assert not found[-1].reason


def test_selection_ranks_by_cross_validation_and_keeps_what_cannot_be_fitted() -> None:
    form, constants = KNOWN[3]
    runs = measured(form, constants, noise=0.002)
    flat = replace(runs, granularity=np.ones(len(runs)))
    chosen = select([Chinchilla(), Granularity(), SharedIrreducible(), SharedExponents()], flat)
    titles = [row.form.title for row in chosen.rows]
    assert set(titles[:2]) == {"own A and B, shared exponents", "own surfaces, shared E"}
    assert titles[2:] == ["Chinchilla", "granularity"]
    assert chosen.best == chosen.rows[0].form
    errors = [row.cross_validated.error for row in chosen.rows if row.cross_validated]
    assert errors == sorted(errors)
    assert [row.parameters for row in chosen.rows[2:]] == [5, None]
    assert "granularity='1 different values'" in chosen.rows[-1].reason
    first = chosen.rows[0]
    assert first.in_sample is not None
    assert first.in_sample < first.cross_validated.error  # type: ignore[union-attr]


def test_more_constants_than_the_runs_bear_do_not_win() -> None:
    """Own exponents of three families from four runs each: better in sample, worse out of it."""
    form, constants = KNOWN[3]
    runs = measured(form, constants, noise=0.02, runs=table(15))
    rows = {row.form.title: row for row in select([SharedIrreducible(), SharedExponents()], runs, folds=15).rows}
    rich, plain = rows["own surfaces, shared E"], rows["own A and B, shared exponents"]
    assert rich.in_sample is not None
    assert plain.in_sample is not None
    assert rich.in_sample < plain.in_sample
    assert plain.cross_validated.error < rich.cross_validated.error  # type: ignore[union-attr]


@pytest.mark.parametrize(("flops", "scored"), [(np.geomspace(1, 8, 4), 10), (np.geomspace(1, 8, 40), 21)])
def test_a_selection_s_rollout_is_of_the_largest_budget_or_of_the_largest_third(flops: np.ndarray, scored: int) -> None:
    """Four budgets of ten runs, or forty of one, of which 21 are above a third of the largest."""
    runs = replace(
        measured(CHINCHILLA, CONSTANTS, noise=0.01, runs=table(40)), flops=np.repeat(flops, 40 // len(flops))
    )
    (row,) = select([CHINCHILLA], runs).rows
    large = runs.flops >= 8 * (1 - 1e-9) if len(flops) == 4 else runs.flops > 8 / 3
    assert row.scored == scored == large.sum()
    assert row.rollout == pytest.approx(np.sqrt(np.mean(log_errors(runs.where(~large), runs.where(large)) ** 2)))
    assert f"of {scored} runs" in row.cells[4]


def test_of_one_budget_a_selection_says_that_none_is_larger() -> None:
    (row,) = select([CHINCHILLA], replace(NOISY, flops=np.ones(30))).rows
    assert (row.rollout, row.scored) == (None, None)
    assert "largest budgets: flops='one budget, 1'" in row.reason


def scored(form: Form, *folds: float) -> Selection:
    error = float(np.sqrt(np.mean(np.square(folds))))
    return Selection(form, 5, 0.1, Score(error, 0.0, folds), None, "")


def test_forms_that_differ_by_less_than_the_folds_do_are_tied() -> None:
    """The first and the second win two folds each; the third is worse by as much in every fold, however these vary."""
    best, close = scored(Chinchilla(), 0.1, 0.3, 0.1, 0.3), scored(OneExponent(), 0.3, 0.1, 0.301, 0.1)
    worse = scored(SharedExponents(), 0.11, 0.31, 0.11, 0.31)
    none = Selection(Granularity(), None, None, None, None, "few")
    chosen = SelectionTable((best, close, worse, none))
    assert chosen.tied == (best, close)
    assert ["tied" in cells[3] for cells in chosen.cells] == [False, True, False, False]
    assert SelectionTable((none,)).tied == ()


def test_a_selection_is_a_table() -> None:
    chosen = select([Chinchilla(), Granularity()], replace(NOISY, granularity=np.ones(30)))
    lines = markdown_table(chosen.columns, chosen.cells).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "%" in lines[2]
    assert "granularity=" in lines[3]


def test_bad_settings_are_named() -> None:
    for call, match in (
        (lambda: rollout(CHINCHILLA, NOISY, "loss"), "order_by='loss'"),
        (lambda: rollout(CHINCHILLA, NOISY, cuts=[1.0]), "cuts=1.0"),
        (lambda: rollout(CHINCHILLA, replace(NOISY, flops=np.ones(30))), "flops='one value'"),
        (lambda: cross_validate(CHINCHILLA, NOISY, folds=31), "folds=31"),
        (lambda: cross_validate(CHINCHILLA, NOISY, folds=1), "folds=1"),
        (lambda: select([], NOISY), "forms=0"),
        (lambda: select([Granularity()], replace(NOISY, granularity=np.ones(30))).best, "granularity:"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_overtraining_is_predicted_from_five_small_runs() -> None:
    """Gadre et al. 2024: models of 1.4B and 6.9B parameters from four of 20 tokens for each and a small one of 320.

    They report errors of about 1% (RedPajama, loss on C4), the farthest run at 300 times the compute of all five.
    """
    path = DATA / "overtraining_open_lm.csv"
    if not path.exists():
        pytest.skip("the published runs are not here")
    rows = [row for row in csv.DictReader(path.open()) if row["dataset"] == "rpj"]
    used = [
        row
        for row in rows
        if float(row["params"]) > 1e9
        or row["chinchilla_multiplier"] == "1.0"
        or (row["chinchilla_multiplier"] == "16.0" and float(row["params"]) < 2e7)
    ]
    params, tokens, loss = ([float(row[name]) for row in used] for name in ("params", "tokens", "loss_c4_val"))
    (found,) = rollout(OneExponent(), Runs.of(params, tokens, loss), "active", cuts=[5e8])
    assert (found.fitted, found.scored) == (5, 3)
    assert found.error < 0.015
