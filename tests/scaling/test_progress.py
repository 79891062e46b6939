"""What a user reads while a sweep runs, where there is no terminal to draw bars on."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from synthetic_study import run_result

from toolkit.scaling import Grid, IsoFLOP, ModelShape, PlannedRun, RunResult, plan_isoflop, progress
from toolkit.scaling.progress import SweepProgress
from toolkit.training import TrainingConfig

BASE = TrainingConfig(steps=1, context=32, batch_size=4, precision="32-true")
RUNS = plan_isoflop(Grid((IsoFLOP(1e10, (16, 32)),), families=("dense",), seeds=2), ModelShape(), 256, BASE)
SECONDS = {run.name: 0.01 for run in RUNS}


def row(run: PlannedRun) -> RunResult:
    result = run_result(run.family, run.budget, run.dim, run.seed, 2.3456)
    return replace(result, run=run.name, flops_spent=0.998 * run.budget, seconds_wall=12.4)


def test_each_finished_run_is_a_line_with_its_number_of_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    with SweepProgress(RUNS, RUNS, SECONDS, workers=1) as shown:
        for run in RUNS:
            shown.update(run.name, 3, run.training.steps)
            shown.finished(run, row(run))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for number, (line, run) in enumerate(zip(lines, RUNS, strict=True), start=1):
        assert line.startswith(f"[{number}/4] {run.name}: 2.346 bits per byte, 0.9980 of its budget, 12 s; about ")
    assert lines[-1].endswith("about 0:00 left")


def test_runs_that_were_finished_before_are_counted_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    with SweepProgress(RUNS, RUNS[3:], SECONDS, workers=2) as shown:
        shown.finished(RUNS[3], row(RUNS[3]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 of 4 runs are finished already and are not run again"
    assert lines[1].startswith("[4/4] ")


def test_the_time_left_is_at_the_pace_of_what_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    estimate = {run.name: run.training.steps * SECONDS[run.name] for run in RUNS}
    with SweepProgress(RUNS, RUNS, SECONDS, workers=2) as shown:
        now[0] += 600.0
        shown.finished(RUNS[0], row(RUNS[0]))
        now[0] += 300.0
        shown.finished(RUNS[1], row(RUNS[1]))
    pace = (600.0 / estimate[RUNS[0].name], 900.0 / (estimate[RUNS[0].name] + estimate[RUNS[1].name]))
    left = (
        pace[0] * sum(estimate[run.name] for run in RUNS[1:]),
        pace[1] * sum(estimate[run.name] for run in RUNS[2:]),
    )
    shown_left = re.findall(r"about (\d+):(\d\d) left", capsys.readouterr().out)
    assert [int(minutes) * 60 + int(seconds) for minutes, seconds in shown_left] == [int(second) for second in left]


def test_only_the_main_process_prints(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with SweepProgress(RUNS, RUNS[1:], SECONDS, workers=1) as shown:
        shown.reporter(RUNS[1].name)(5, 10)
        shown.finished(RUNS[1], row(RUNS[1]))
    assert capsys.readouterr().out == ""


def test_an_error_in_a_sweep_goes_through() -> None:
    with pytest.raises(ZeroDivisionError), SweepProgress(RUNS, RUNS, SECONDS, workers=1):
        raise ZeroDivisionError
