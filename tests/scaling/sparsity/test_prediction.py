"""Predictions: the law's own optimum, intervals that hold new runs, and a file that is written once."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sparsity_cases import CONTEXT, FAMILIES, LAW, SHAPE, VOCAB, known_law, law_rows
from synthetic_study import run_result

from toolkit.scaling.laws import FormBootstrap, SharedExponents, fit_form, runs_of
from toolkit.scaling.sparsity import prediction  # whose `tested` and `Tested` pytest would take for tests
from toolkit.scaling.sparsity.prediction import (
    NextBudget,
    Prediction,
    keep_predictions,
    predict,
    wait_for,
    wait_for_predictions,
)
from toolkit.scaling.sparsity.widths import Widths, architecture

BUDGET = 3e11
WIDTHS = {family: Widths.of(SHAPE, family, range(8, 65, 8), VOCAB, CONTEXT) for family in FAMILIES}
PREDICTED = Prediction("moe", BUDGET, 32, 1e5, 3e5, 1e7, 2.0, 1.9, 2.1, False, "a law")
DENSE = replace(PREDICTED, family="dense", dim=24)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_noise_the_prediction_is_the_truth_at_the_best_width(family: str) -> None:
    law = fit_form(SharedExponents(), runs_of(law_rows(), architecture(SHAPE)))
    widths = WIDTHS[family]
    found = predict(law, law.bootstrap(20), widths, BUDGET)
    losses = [
        LAW["E"]
        + LAW[f"A[{family}]"] * active ** -LAW["alpha"]
        + LAW[f"B[{family}]"] * (BUDGET / flops) ** -LAW["beta"]
        for active, flops in zip(widths.active, widths.flops, strict=True)
    ]
    best = int(np.argmin(losses))
    assert found.dim == widths.dims[best]
    assert found.loss == pytest.approx(losses[best], rel=1e-6)
    assert (found.active, found.total) == (widths.active[best], widths.total[best])
    assert found.tokens * widths.flops[best] == pytest.approx(BUDGET)
    assert found.low == pytest.approx(found.loss, rel=1e-4)
    assert found.high == pytest.approx(found.loss, rel=1e-4)
    assert (found.family, found.budget, found.law) == (family, BUDGET, SharedExponents.title)


@pytest.mark.parametrize(("dims", "at_edge"), [((8, 16), True), ((64, 128), True), ((8, 32, 128), False)])
def test_a_width_at_the_edge_of_those_allowed_is_told(dims: tuple[int, ...], at_edge: bool) -> None:
    law = known_law(LAW, runs_of(law_rows(), architecture(SHAPE)))
    draws = FormBootstrap(law, law.vector[None], 0)
    widths = Widths.of(SHAPE, "dense", dims, VOCAB, CONTEXT)
    assert predict(law, draws, widths, BUDGET).at_edge == at_edge


def test_intervals_hold_about_as_many_new_runs_as_they_say() -> None:
    noise, held, wide = 0.01, [], []
    generator = np.random.default_rng(5)
    truth = known_law(LAW, runs_of(law_rows(), architecture(SHAPE)))
    for study in range(40):
        law = fit_form(SharedExponents(), runs_of(law_rows(noise=noise, seeds=2, seed=study), architecture(SHAPE)))
        draws = law.bootstrap(100)
        for widths in WIDTHS.values():
            found = predict(law, draws, widths, BUDGET)
            mine = widths.runs(np.array([BUDGET]))
            loss = truth.predict(mine)[widths.dims.index(found.dim)] * math.exp(noise * generator.standard_normal())
            held.append(found.low <= loss <= found.high)
            wide.append(math.log(found.high / found.low))
    assert np.mean(held) >= 0.8  # 80 of them, nominally 95%, and bootstraps fall short
    assert 2 * 1.96 * noise * 0.8 < np.median(wide) < 4 * 2 * 1.96 * noise  # and not by holding everything


def test_what_was_predicted_first_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "prediction.json"
    assert keep_predictions(path, [DENSE, PREDICTED]) == [DENSE, PREDICTED]
    written = path.read_text()
    later = [replace(DENSE, loss=1.0, dim=8), PREDICTED]
    assert keep_predictions(path, later) == [DENSE, PREDICTED] == wait_for_predictions(path)
    assert keep_predictions(path, []) == [DENSE, PREDICTED]
    assert path.read_text() == written
    assert json.loads(written)[1]["family"] == "moe"


@pytest.mark.parametrize("other", [[replace(DENSE, budget=1e12), PREDICTED], [DENSE], [PREDICTED, DENSE]])
def test_another_budget_or_other_families_are_refused(tmp_path: Path, other: list[Prediction]) -> None:
    path = tmp_path / "prediction.json"
    keep_predictions(path, [DENSE, PREDICTED])
    with pytest.raises(ValueError, match="prediction=.*same families and budget, or another folder"):
        keep_predictions(path, other)
    assert wait_for_predictions(path) == [DENSE, PREDICTED]


def test_that_there_are_none_is_written_for_those_who_wait_and_is_no_prediction(tmp_path: Path) -> None:
    path = tmp_path / "prediction.json"
    assert keep_predictions(path, []) == [] == wait_for_predictions(path)
    assert keep_predictions(path, [DENSE]) == [DENSE] == wait_for_predictions(path)


def test_waiting_ends_when_the_file_is_there_or_its_writer_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = tmp_path / "late.json"
    writer = threading.Timer(0.2, lambda: late.write_text("[]"))
    writer.start()
    assert wait_for(late) == "[]"
    writer.join()
    parents = iter([7, 1])
    monkeypatch.setattr("toolkit.scaling.sparsity.prediction.os.getppid", lambda: next(parents))
    with pytest.raises(RuntimeError, match=r"never\.json was waited for, but the main process ended"):
        wait_for(tmp_path / "never.json")


def test_each_prediction_stands_beside_its_own_runs() -> None:
    rows = [
        run_result("moe", BUDGET, 32, 0, 2.05),
        run_result("moe", BUDGET, 32, 1, 1.95),
        run_result("moe", BUDGET, 24, 0, 1.0),  # another width
        run_result("moe", 1e10, 32, 0, 1.0),  # another budget
        run_result("dense", BUDGET, 32, 0, 1.0),  # another family
    ]
    (test,) = prediction.tested([DENSE, PREDICTED], rows)
    assert test.prediction == PREDICTED
    assert test.measured == {rows[0].run: 2.05, rows[1].run: 1.95}
    assert test.loss == pytest.approx(2.0)
    assert test.error == pytest.approx(0.0)
    assert test.held


@pytest.mark.parametrize(("losses", "held"), [((1.9, 2.1), True), ((1.89, 2.0), False), ((2.0, 2.11), False)])
def test_it_held_if_every_run_lies_within(losses: tuple[float, float], held: bool) -> None:
    assert prediction.Tested(PREDICTED, {"a": losses[0], "b": losses[1]}).held == held


def test_a_run_that_diverged_is_told_and_fails_the_prediction() -> None:
    rows = [run_result("moe", BUDGET, 32, 0, 2.1), run_result("moe", BUDGET, 32, 1, math.nan)]
    (test,) = prediction.tested([PREDICTED], rows)
    assert (test.measured, test.diverged) == ({rows[0].run: 2.1}, (rows[1].run,))
    assert (test.loss, test.error, test.held) == (2.1, pytest.approx(0.05), False)
    (gone,) = prediction.tested([PREDICTED], rows[1:])
    assert math.isnan(gone.loss)
    assert not gone.held


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"flops": 0.0}, "flops=0.0: it must be positive"),
        ({"flops": 1e9, "seeds": 0}, "seeds=0: it must be positive"),
        ({"flops": 1e9, "families": ()}, "next_budget.families="),
        ({"flops": 1e9, "families": ("moe", "moe")}, "next_budget.families="),
    ],
)
def test_a_budget_that_makes_no_runs_is_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        NextBudget(**settings)  # type: ignore[arg-type]
