"""The stages by themselves: laws of what finished, predictions before their runs, and what other processes read."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from experiment_script import write_text
from sparsity_cases import read
from synthetic_study import run_result

from toolkit.compute import cost
from toolkit.scaling.plan import TOLERANCE, plan_run
from toolkit.scaling.results import RunResult
from toolkit.scaling.sparsity.prediction import predict
from toolkit.scaling.sparsity.study import Laws, SparsityStudy

MAIN = "toolkit.scaling.sparsity.study.is_main_process"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> SparsityStudy:
    text = write_text(tmp_path_factory.mktemp("text"))
    return read(text, text.parent / "study")


@pytest.fixture(scope="module")
def laws(study: SparsityStudy) -> Laws:
    return study.fit(surface_rows(study), resamples=10)


@pytest.fixture
def fresh(study: SparsityStudy, tmp_path: Path) -> SparsityStudy:
    """The same in a folder of its own."""
    return replace(study, base=replace(study.base, folder=type(study.base.folder)(tmp_path)))


def surface_rows(study: SparsityStudy, gain: float = 1.5) -> list[RunResult]:
    """The grid's rows with losses of one surface, the mixture's on ``gain`` times the tokens."""
    rows = []
    for run in study.base.runs:
        active = run.cost.total_active_parameters
        tokens = run.tokens * (gain if run.family == "moe" else 1)
        loss = 1.0 + 9 / active**0.3 + 40 / tokens**0.35
        made = run_result(run.family, run.budget, run.dim, run.seed, loss)
        rows.append(
            replace(
                made, run=run.name, tokens=run.tokens, active_parameters=active, parameters=run.cost.total_parameters,
                embedding_parameters=run.cost.parameters["embedding"],
            )
        )  # fmt: skip
    return rows


def test_the_law_finds_the_surface_and_asks_every_budget_and_the_next(laws: Laws) -> None:
    assert [(entry.family, entry.budget) for entry in laws.multipliers] == [
        ("moe", budget) for budget in (4e8, 6e8, 9e8, 1.4e9)
    ]
    for entry in laws.multipliers:
        assert 1 < entry.estimate.value < 1.5**1.01 * 1.1
    assert laws.multipliers[-1].estimate.extrapolated
    assert laws.best.form.families == ("dense", "moe")


def test_a_family_that_diverged_everywhere_leaves_the_others_their_law(fresh: SparsityStudy) -> None:
    rows = [replace(row, bits_per_byte=math.nan) if row.family == "moe" else row for row in surface_rows(fresh)]
    laws = fresh.fit(rows, resamples=10)
    assert [each.family for each in fresh.predictions(laws)] == ["dense"]
    assert laws.multipliers == ()
    assert laws.runs.families == ("dense",)
    rows = [replace(row, bits_per_byte=math.nan) if row.family == "dense" else row for row in surface_rows(fresh)]
    with pytest.raises(ValueError, match="rows=\"none of 'dense' with a finite loss\""):
        fresh.fit(rows)


def test_predictions_are_written_once_and_planned_at_their_width(fresh: SparsityStudy, laws: Laws) -> None:
    predictions = fresh.predictions(laws)
    assert [(each.family, each.budget) for each in predictions] == [("dense", 1.4e9), ("moe", 1.4e9)]
    written = fresh.prediction_path.read_text()
    other = replace(laws, best=replace(laws.best, vector=1.01 * laws.best.vector))
    assert predict(other.best, laws.draws, fresh.widths["moe"], 1.4e9) != predictions[1]
    assert fresh.predictions(other) == predictions
    assert fresh.prediction_path.read_text() == written
    rates = replace(fresh, base=replace(fresh.base, rates={"moe": 0.05}))
    runs = rates.next_runs(predictions)
    assert [(run.family, run.dim, run.budget) for run in runs] == [(p.family, p.dim, p.budget) for p in predictions]
    assert [run.training.learning_rate for run in runs] == [0.016, 0.05]


def test_what_was_not_predicted_before_its_runs_ended_never_is(fresh: SparsityStudy, laws: Laws) -> None:
    fresh.base.folder.table.append(run_result("moe", 1.4e9, 12, 0, 2.0))
    with pytest.raises(ValueError, match=r"prediction=.*written before its runs: moe-dim12.*use another out="):
        fresh.predictions(laws)
    assert not fresh.prediction_path.exists()


def test_other_processes_read_what_the_main_one_wrote_even_that_there_is_nothing(
    fresh: SparsityStudy, laws: Laws, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fresh.predictions(None) == []  # no law
    monkeypatch.setattr(MAIN, lambda: False)
    assert fresh.predictions(None) == []  # and nobody waits for ever
    fresh.prediction_path.unlink()
    monkeypatch.setattr(MAIN, lambda: True)
    predictions = fresh.predictions(laws)
    monkeypatch.setattr(MAIN, lambda: False)
    assert fresh.predictions(None) == predictions


def test_without_a_next_budget_nothing_is_predicted_or_written(fresh: SparsityStudy, laws: Laws) -> None:
    none = replace(fresh, next_budget=None)
    assert none.predictions(laws) == []
    assert none.next_families == ()
    assert not none.prediction_path.exists()
    none.require_steps()


def test_every_width_that_a_law_may_choose_can_spend_the_next_budget(study: SparsityStudy) -> None:
    study.require_steps()
    base = study.base
    for family, widths in study.widths.items():
        for dim in widths.dims:
            run = plan_run(1.4e9, family, dim, 0, study.shape, study.vocab_size, base.training, base.grid.recipe)
            assert abs(run.flops["exact"] / 1.4e9 - 1) <= TOLERANCE
            assert cost(run.model, 16).training_flops["exact"] == widths.flops[widths.dims.index(dim)]
