"""Sweeps: each run once, whatever the workers and whenever they are cut off."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_study import run_result

from toolkit.data import CorpusConfig, prepare_corpus
from toolkit.parallel import ParallelConfig
from toolkit.scaling import Family, Grid, IsoFLOP, ModelShape, PlannedRun, RunResult, StudyFolder, plan_isoflop, sweep
from toolkit.scaling.launch import SlurmSettings, SweepSettings
from toolkit.scaling.plan import Recipe, Search
from toolkit.scaling.sparsity.search import found_rates, plan_search
from toolkit.scaling.sweep import run_sweep, step_seconds, train_one
from toolkit.training import TrainingConfig
from toolkit.training import run as training_run
from toolkit.training.progress import ReportProgress

BASE = TrainingConfig(
    steps=1, context=32, batch_size=4, precision="32-true", evaluations=1, log_every=10, checkpoint_minutes=0.001
)
BY_CLOCK = {"seconds", "seconds_wall"}
pytestmark = pytest.mark.usefixtures("process_as_it_was")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for number in range(12):
        words = rng.choice(["def", "return", "alpha", "beta", "loop", "x"], 400)
        (folder / f"file{number}.txt").write_text(" ".join(words))
    return folder


def plan(flops: float = 4e8, families: tuple[str, ...] = ("dense", "moe"), seeds: int = 2) -> list[PlannedRun]:
    shape = ModelShape((Family("dense"), Family("moe", num_experts=4)), layers=1)
    return plan_isoflop(Grid((IsoFLOP(flops, (16,)),), families=families, seeds=seeds), shape, 256, BASE)


def settings(text: Path, folder: Path, workers: int = 1) -> SweepSettings:
    corpus = CorpusConfig(paths=(str(text),), validation_share=0.3)
    cache = text.parent / "cache"
    return SweepSettings(StudyFolder(folder), corpus, cache, ParallelConfig(), workers, 1, 20)


def same(rows: Sequence[RunResult]) -> list[str]:
    """All but what a clock says; as text, in which nan equals nan."""
    return [repr({name: value for name, value in asdict(row).items() if name not in BY_CLOCK}) for row in rows]


RUNS = plan()
SECONDS = {run.name: 0.01 for run in RUNS}


def test_two_workers_give_what_one_gives(text: Path, tmp_path: Path) -> None:
    one = run_sweep(RUNS, settings(text, tmp_path / "one"), SECONDS)
    two = run_sweep(RUNS, settings(text, tmp_path / "two", workers=2), SECONDS)
    assert [row.run for row in one] == [run.name for run in RUNS]
    assert same(one) == same(two)
    for folder in ("one", "two"):
        assert {row.run for row in StudyFolder(tmp_path / folder).table.read()} == {run.name for run in RUNS}
    for run, row in zip(RUNS, one, strict=True):
        assert row.flops_planned == run.flops["exact"]
        assert row.flops_spent == pytest.approx(row.flops_planned)
        assert row.flops_palm == pytest.approx(run.flops["palm"])
        assert row.flops_hardware == pytest.approx(run.flops["hardware"])
        assert (row.steps, row.tokens) == (run.training.steps, run.tokens)
        assert row.active_parameters == run.cost.total_active_parameters
        assert row.parameters == run.cost.total_parameters
        assert row.seconds == pytest.approx(0.01 * row.steps)
        assert row.seconds_wall > 0
        assert row.epochs == pytest.approx(row.tokens / len(prepare_corpus(*corpus_of(text)).train))
    assert len({row.bits_per_byte for row in one}) == len(RUNS)


@pytest.mark.slow
def test_jobs_give_what_this_process_gives(
    text: Path, tmp_path: Path, one_by_one: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branches after their trunks, too; the jobs are submitit's processes on this machine."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    cluster = SlurmSettings(cluster="local", gpus_per_task=0, jobs_at_once=2)
    how = replace(branching(text, tmp_path), launcher="slurm", slurm=cluster)
    assert same(run_sweep(BRANCHED, how, BRANCHED_SECONDS)) == one_by_one
    check_branched(tmp_path)


def corpus_of(text: Path) -> tuple[CorpusConfig, Path]:
    made = settings(text, text)
    return made.corpus, made.cache


class Recorder:
    """Stands for training: says which runs were trained, and may fail at one of them."""

    def __init__(self, fails: str = "") -> None:
        self.trained: list[str] = []
        self.rows_before: list[int] = []
        self.fails = fails

    def __call__(
        self, run: PlannedRun, corpus: Any, how: SweepSettings, seconds: float, report: Any, beginnings: Any
    ) -> RunResult:
        self.trained.append(run.name)
        self.rows_before.append(len(how.folder.table.read()))
        if run.name == self.fails:
            raise KeyboardInterrupt
        values = asdict(run_result(run.family, run.budget, run.dim, run.seed, 2.0))
        return RunResult(**{**values, "run": run.name})


def test_each_run_is_recorded_before_the_next_begins(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(sweep, "train_one", recorder)
    rows = run_sweep(RUNS, settings(text, tmp_path), SECONDS)
    assert recorder.trained == [run.name for run in RUNS] == [row.run for row in rows]
    assert recorder.rows_before == [0, 1, 2, 3]


def test_a_sweep_that_was_stopped_goes_on_with_the_next_unfinished_run(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [run.name for run in RUNS]
    monkeypatch.setattr(sweep, "train_one", Recorder(fails=names[2]))
    with pytest.raises(KeyboardInterrupt):
        run_sweep(RUNS, settings(text, tmp_path), SECONDS)
    table = StudyFolder(tmp_path).table
    assert [row.run for row in table.read()] == names[:2]
    recorder = Recorder()
    monkeypatch.setattr(sweep, "train_one", recorder)
    rows = run_sweep(RUNS, settings(text, tmp_path), SECONDS)
    assert recorder.trained == names[2:]
    assert [row.run for row in rows] == names
    assert "2 of 4 runs are finished already" in capsys.readouterr().out
    before = table.path.read_bytes(), table.path.stat().st_mtime_ns
    recorder.trained.clear()
    assert same(run_sweep(RUNS, settings(text, tmp_path), SECONDS)) == same(rows)
    assert recorder.trained == []
    assert (table.path.read_bytes(), table.path.stat().st_mtime_ns) == before


def test_rows_are_in_planned_order_whatever_the_order_they_ended_in(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "train_one", Recorder())
    run_sweep(RUNS[::-1], settings(text, tmp_path), SECONDS)
    assert [row.run for row in run_sweep(RUNS, settings(text, tmp_path), SECONDS)] == [run.name for run in RUNS]
    assert [row.run for row in run_sweep(RUNS[1:3], settings(text, tmp_path), SECONDS)] == [
        run.name for run in RUNS[1:3]
    ]


def test_what_a_run_left_without_a_checkpoint_is_not_gone_on_from(text: Path, tmp_path: Path) -> None:
    (run,) = plan(families=("dense",), seeds=1)
    how = settings(text, tmp_path)
    corpus = prepare_corpus(how.corpus, how.cache)
    clean = train_one(run, corpus, settings(text, tmp_path / "clean"), 0.01)
    left = how.folder.run(run.name)
    left.mkdir(parents=True)
    (left / "metrics.jsonl").write_text('{"step": 1, "train/loss": 99.0}\n')
    (left / "events.out.tfevents.0.old").write_bytes(b"half an event")
    row = train_one(run, corpus, how, 0.01)
    assert same([row]) == same([clean])
    assert not (left / "events.out.tfevents.0.old").exists()
    assert "99.0" not in (left / "metrics.jsonl").read_text()


def test_hparams_say_what_the_run_is(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.training import run as training

    given: dict[str, Any] = {}

    def fit(*arguments: Any, **settings: Any) -> Any:
        given.update(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", fit, raising=False)
    how = settings(text, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_one(RUNS[1], prepare_corpus(how.corpus, how.cache), how, 0.01)
    training_config = RUNS[1].training
    assert given["hparams"] == {
        "family": "moe",
        "budget": 4e8,
        "dim": 16,
        "seed": 0,
        "learning_rate": training_config.learning_rate,
        "steps": training_config.steps,
    }
    assert given["validation_count"] == 20


def too_fast(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs at a learning rate that no model survives."""
    return [replace(run, mark="-fast", training=replace(run.training, learning_rate=1e20)) for run in runs]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_diverges_is_recorded_and_not_run_again(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Both where their losses, gradients or routers' logits stopped being finite; then the others."""
    sound = plan(seeds=1)
    runs = too_fast(sound) + sound
    seconds = {run.name: 0.01 for run in runs}
    rows = run_sweep(runs, settings(text, tmp_path, workers), seconds)
    assert [row.run for row in rows] == [run.name for run in runs]
    assert [math.isnan(row.bits_per_byte) for row in rows] == [True, True, False, False]
    for run, row in zip(runs[:2], rows[:2], strict=True):
        assert 0 < row.steps < run.training.steps
        assert row.tokens == row.steps * run.training.tokens_per_step
        assert row.flops_spent / row.flops_planned == pytest.approx(row.steps / run.training.steps)
        assert row.seconds == pytest.approx(0.01 * row.steps)
        assert row.seconds_wall > 0
    recorder = Recorder()
    monkeypatch.setattr(sweep, "train_one", recorder)
    assert same(run_sweep(runs, settings(text, tmp_path), seconds)) == same(rows)
    assert recorder.trained == []


def test_a_search_for_the_rate_survives_one_that_diverges(text: Path, tmp_path: Path) -> None:
    shape = ModelShape((Family("moe", num_experts=4),), layers=1)
    search = Search(flops=4e8, factors=(0.1, 1.0, 1e19))
    recipe = Recipe(learning_rate=0.01, base_dim=16, search=search)
    runs = plan_search(recipe, shape, ("moe",), 256, BASE)
    rows = run_sweep(runs, settings(text, tmp_path), {run.name: 0.01 for run in runs})
    (found,) = found_rates(recipe, runs, rows).values()
    assert math.isinf(found.losses[-1])
    assert found.rate <= 0.01


def test_other_errors_than_divergence_still_stop_the_sweep(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*arguments: Any, **given: Any) -> Any:
        raise ValueError("context=5000: it must be at most 100")

    monkeypatch.setattr(training_run, "fit", fit)
    with pytest.raises(RuntimeError, match="failed; finished runs are kept"):
        run_sweep(RUNS, settings(text, tmp_path), SECONDS)
    assert StudyFolder(tmp_path).table.read() == []


GROWING = replace(BASE, steps=10**6, batch_size=2, schedule="wsd", warmup_steps=3, decay_share=0.25)


def plan_branches() -> list[PlannedRun]:
    """Of two families runs of about 50, 70 and 100 steps; the last is the trunk of the others."""
    grid = Grid(tuple(IsoFLOP(flops, (16,)) for flops in (1.7e8, 2.4e8, 3.4e8)), seeds=1)
    return plan_isoflop(grid, ModelShape((Family("dense"), Family("moe", num_experts=4)), layers=1), 256, GROWING)


BRANCHED = plan_branches()
BRANCHED_SECONDS = {run.name: 0.01 for run in BRANCHED}


@pytest.fixture(scope="module")
def one_by_one(text: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("one_by_one")
    return same(run_sweep(BRANCHED, settings(text, folder), BRANCHED_SECONDS))


def branching(text: Path, folder: Path, workers: int = 1) -> SweepSettings:
    return replace(settings(text, folder, workers), branch=True)


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("runs/*/checkpoints/step*.ckpt")}


def branched_from(folder: Path) -> dict[str, Any]:
    return {run.name: json.loads((folder / "runs" / run.name / "run.json").read_text())["branch"] for run in BRANCHED}


def check_branched(folder: Path) -> None:
    """All but the trunks were begun from one, and nothing that was kept for them is left."""
    trunks = {run.family: run.name for run in BRANCHED if run.budget == 3.4e8}
    decays = {run.name: run.training.steps - round(run.training.steps / 4) for run in BRANCHED}
    expected = {
        run.name: None if run.budget == 3.4e8 else {"trunk": trunks[run.family], "step": decays[run.name]}
        for run in BRANCHED
    }
    assert branched_from(folder) == expected
    assert kept(folder) == set()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_branches_give_what_the_runs_give_one_by_one(
    text: Path, tmp_path: Path, one_by_one: list[str], workers: int
) -> None:
    rows = run_sweep(BRANCHED, branching(text, tmp_path, workers), BRANCHED_SECONDS)
    assert same(rows) == one_by_one
    assert [row.seconds for row in rows] == [pytest.approx(0.01 * run.training.steps) for run in BRANCHED]
    assert all(row.flops_spent == pytest.approx(row.flops_planned) for row in rows)
    check_branched(tmp_path)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(("budget", "step"), [(3.4e8, 20), (3.4e8, 60), (1.7e8, 42), (2.4e8, 60)])
def test_a_sweep_with_branches_may_be_cut_off_in_a_trunk_or_a_branch(
    text: Path, tmp_path: Path, one_by_one: list[str], monkeypatch: pytest.MonkeyPatch, budget: float, step: int
) -> None:
    """The second trunk, before and after its first branch leaves it, or one of its branches; with checkpoints."""
    (victim,) = (run.name for run in BRANCHED if (run.family, run.budget) == ("moe", budget))
    trained: list[tuple[str, int]] = []

    def update(progress: Any, name: str, done: int, steps: int) -> None:
        trained.append((name, done))
        if name == victim and done == step:
            raise Killed

    monkeypatch.setattr(training_run, "ReportProgress", functools.partial(ReportProgress, seconds=0.0))
    with monkeypatch.context() as patch:
        patch.setattr(sweep.SweepProgress, "update", update)
        with pytest.raises(RuntimeError, match=f"run {victim} failed"):
            run_sweep(BRANCHED, branching(text, tmp_path), BRANCHED_SECONDS)
    finished = {row.run for row in StudyFolder(tmp_path).table.read()}
    assert victim not in finished
    monkeypatch.setattr(sweep.SweepProgress, "update", lambda *told: trained.append(told[1:3]))
    rows = run_sweep(BRANCHED, branching(text, tmp_path), BRANCHED_SECONDS)
    assert same(rows) == one_by_one
    check_branched(tmp_path)
    assert not {name for name, _ in trained[trained.index((victim, step)) + 1 :]} & finished


def test_trunks_that_were_trained_without_branches_are_no_hindrance(
    text: Path, tmp_path: Path, one_by_one: list[str]
) -> None:
    trunks = [run for run in BRANCHED if run.budget == 3.4e8]
    run_sweep(trunks, settings(text, tmp_path), BRANCHED_SECONDS)
    with pytest.warns(UserWarning, match="is trained from step 0"):
        rows = run_sweep(BRANCHED, branching(text, tmp_path), BRANCHED_SECONDS)
    assert same(rows) == one_by_one
    assert set(branched_from(tmp_path).values()) == {None}


def probe(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace the clock by one that counts up; the list tells how many models each call timed."""
    calls: list[int] = []

    def timed(configs: Sequence[Any], device: str) -> list[float]:
        calls.append(len(configs))
        return [0.5 + index for index, _ in enumerate(configs)]

    monkeypatch.setattr(sweep, "probe_step_seconds", timed)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.5, 9.0, 9.0))
    return calls


def test_a_step_s_time_is_measured_once_for_each_family_and_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = probe(monkeypatch)
    seconds = step_seconds(RUNS, StudyFolder(tmp_path), threads=1)
    assert calls == [2]  # two families at one width; seeds share a time
    assert seconds == {run.name: 0.5 + (run.family == "moe") for run in RUNS}
    assert json.loads((tmp_path / "step_seconds.json").read_text()) == {
        "dense-dim16-threads1": 0.5,
        "moe-dim16-threads1": 1.5,
    }
    assert json.loads((tmp_path / "step_load.json").read_text()) == 2.5
    assert step_seconds(RUNS, StudyFolder(tmp_path), threads=1) == seconds
    assert calls == [2]


def test_times_kept_are_the_ones_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = probe(monkeypatch)
    (tmp_path / "step_seconds.json").write_text('{"dense-dim16-threads1": 7.0, "moe-dim16-threads1": 8.0}')
    assert set(step_seconds(RUNS, StudyFolder(tmp_path), threads=1).values()) == {7.0, 8.0}
    assert calls == []


def test_a_cell_without_a_time_has_all_timed_anew_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = probe(monkeypatch)
    (tmp_path / "step_seconds.json").write_text('{"dense-dim16-threads1": 7.0}')
    assert set(step_seconds(RUNS, StudyFolder(tmp_path), threads=1).values()) == {0.5, 1.5}
    assert calls == [2]


def test_another_number_of_threads_is_timed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = probe(monkeypatch)
    for threads in (1, 2):
        step_seconds(RUNS, StudyFolder(tmp_path), threads)
    assert calls == [2, 2]


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe(monkeypatch)
    step_seconds(RUNS, StudyFolder(tmp_path / "study"), threads=1)
    assert not (tmp_path / "study").exists()
