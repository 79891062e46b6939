"""The same runs, counted four ways."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import run_result

from toolkit.scaling.laws import LossSurface, exponents_by_convention
from toolkit.scaling.results import COUNTS, RunResult

SURFACE = LossSurface(E=0.6, A=20.0, B=30.0, alpha=0.3, beta=0.3)
BUDGETS = (1e13, 1e14, 1e15)


def study(family: str = "dense", embedding: int = 40_000, budgets: tuple[float, ...] = BUDGETS) -> list[RunResult]:
    """Losses follow the layers' parameters and the head's, FLOPs too; the embedding, untied, is idle weight."""
    rows = []
    for budget in budgets:
        for factor in np.geomspace(1 / 8, 8, 7):
            active = round(SURFACE.optimum(budget).params * factor)
            tokens = budget / (6 * active)
            row = run_result(family, budget, active, 0, float(SURFACE.loss(active, tokens)))
            rows.append(
                replace(
                    row,
                    tokens=tokens,
                    parameters=active + embedding,
                    active_parameters=active + embedding,  # type: ignore[arg-type]
                    embedding_parameters=embedding,
                    head_parameters=embedding,
                )
            )
    return rows


def test_the_convention_that_the_losses_follow_has_the_true_exponents() -> None:
    found = {each.convention: each for each in exponents_by_convention(study(), "dense", resamples=50)}
    assert tuple(found) == COUNTS
    true = found["active_with_head"]
    assert [true.alpha.value, true.beta.value, true.exponent.value] == pytest.approx([0.3, 0.3, 0.5], rel=1e-3)
    assert true.allocation is not None
    assert true.allocation.params.exponent == pytest.approx(0.5, abs=1e-4)
    assert true.exponent.low <= true.exponent.value <= true.exponent.high


def test_idle_parameters_flatten_the_growth_of_the_best_size_and_leaving_the_head_out_steepens_it() -> None:
    """Kaplan's exponent against Hoffmann's: a count without the head grows faster, one with idle weight slower."""
    rows = {each.convention: each for each in exponents_by_convention(study(), "dense", resamples=2)}
    growth = {name: each.allocation.params.exponent for name, each in rows.items() if each.allocation}
    assert growth["active_total"] < growth["active_with_head"] < growth["active"]
    assert (rows["active_total"].fitted.runs.active > rows["active"].fitted.runs.active).all()


def test_seeds_of_a_cell_tell_nothing_new() -> None:
    """A copy of every run as another seed leaves the intervals as wide as they were."""
    rng, rows = np.random.default_rng(0), study()
    noisy = [replace(row, bits_per_byte=row.bits_per_byte * np.exp(0.01 * rng.standard_normal())) for row in rows]
    once, twice = (exponents_by_convention(runs, "dense", resamples=400)[1].alpha for runs in (noisy, 2 * noisy))
    assert twice.value == pytest.approx(once.value, rel=1e-6)
    assert twice.high - twice.low == pytest.approx(once.high - once.low, rel=0.2)


def branched_study(seed: int) -> list[RunResult]:
    """Two dozen sizes, each one trunk at five budgets, with errors that are the trunk's and hardly the run's."""
    rng, rows = np.random.default_rng(seed), []
    for active in np.geomspace(1e5, 1e7, 24).round().astype(int).tolist():
        trunk = 0.01 * rng.standard_normal()
        for budget in np.geomspace(1e13, 1e15, 5).tolist():
            error = np.exp(trunk + 0.001 * rng.standard_normal())
            row = run_result("dense", budget, active, 0, float(SURFACE.loss(active, budget / 6 / active)) * error)
            rows.append(replace(row, tokens=budget / 6 / active, parameters=active, active_parameters=active))  # type: ignore[arg-type]
    return rows


def test_the_intervals_of_branches_are_those_of_their_trunks() -> None:
    """Against the spread of alpha over studies made anew: branches taken for independent runs make it too small."""
    widths = {False: 0.0, True: 0.0}
    for branched in widths:
        for seed in range(4):
            found = exponents_by_convention(branched_study(seed), "dense", resamples=200, branched=branched)[0].alpha
            widths[branched] += (found.high - found.low) / 4
    anew = [exponents_by_convention(branched_study(seed), "dense", resamples=2)[0].alpha.value for seed in range(40)]
    truth = 2 * 1.96 * float(np.std(anew))
    assert widths[False] < 0.7 * truth
    assert 0.8 * truth < widths[True] < 1.6 * truth


def test_other_families_are_not_looked_at() -> None:
    alone = exponents_by_convention(study(), "dense", resamples=2)
    beside = exponents_by_convention(study("moe", embedding=10) + study(), "dense", resamples=2)
    assert [each.alpha for each in alone] == [each.alpha for each in beside]


def test_without_enough_budgets_the_reason_is_told() -> None:
    (one, *_) = exponents_by_convention(study(budgets=(1e13,)), "dense", resamples=2)
    assert one.allocation is None
    assert "1 budgets" in one.reason


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="level=1"):
        exponents_by_convention(study(), "dense", level=1.0)
    with pytest.raises(ValueError, match=r"family='moe'.*dense"):
        exponents_by_convention(study(), "moe")
