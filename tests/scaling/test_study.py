"""A study's parts fit together before anything long begins, and its plan says what it will cost."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from toolkit.data import CorpusConfig
from toolkit.parallel import ParallelConfig
from toolkit.scaling import Family, Grid, IsoFLOP, ModelShape, Study, StudyFolder, study
from toolkit.scaling.plan import grid_warnings
from toolkit.training import TrainingConfig


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for number in range(12):
        (folder / f"file{number}.txt").write_text(" ".join(rng.choice(["alpha", "beta", "loop", "x"], 900)))
    return folder


@pytest.fixture
def small(text: Path, tmp_path: Path) -> Study:
    return Study(
        corpus=CorpusConfig(paths=(str(text),), validation_share=0.3),
        shape=ModelShape((Family("dense"), Family("moe", num_experts=4)), layers=1),
        grid=Grid((IsoFLOP(4e8, (16, 24)),), families=("dense", "moe"), seeds=2),
        training=TrainingConfig(steps=1, context=32, batch_size=4, precision="32-true"),
        parallel=ParallelConfig(accelerator="cpu"),
        folder=StudyFolder(tmp_path / "study"),
        cache=text.parent / "cache",
        workers=0,
        threads=1,
        validation_windows=20,
        settings="grid: small\n",
    )


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take as long as it says here: half a second for dense models, one for the others."""

    def timed(runs: Any, *where: Any) -> dict[str, float]:
        return {run.name: 0.5 if run.family == "dense" else 1.0 for run in runs}

    monkeypatch.setattr(study, "step_seconds", timed)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": -1}, "workers=-1: it must be 0"),
        ({"threads": 0}, "threads=0: it must be positive"),
        ({"validation_windows": 0}, "validation_windows=0: it must be positive"),
        ({"parallel": ParallelConfig(devices=3)}, "batch_size=4: it must be a multiple of"),
        ({"parallel": ParallelConfig(devices=2), "workers": 2}, "workers=2: it must be 0 or 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(small: Study, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(small, **changes)


def test_the_corpus_must_hold_the_windows_that_are_asked_of_it(small: Study) -> None:
    most = (len(small.prepared.validation) - 1) // 32
    assert replace(small, validation_windows=most).prepared.digest == small.prepared.digest
    with pytest.raises(ValueError, match=f"validation_windows={most + 1}: it must be at most {most}"):
        _ = replace(small, validation_windows=most + 1).prepared
    longer = min(len(small.prepared.train), len(small.prepared.validation))
    with pytest.raises(ValueError, match=f"context={longer}: it must be at most {longer - 1}"):
        _ = replace(small, training=replace(small.training, context=longer)).prepared


@pytest.mark.parametrize(
    ("workers", "threads", "devices", "cores", "expected"),
    [(0, 1, 1, 8, 8), (0, 3, 1, 8, 2), (0, 16, 1, 8, 1), (3, 1, 1, 8, 3), (0, 1, 2, 8, 1), (1, 1, 2, 8, 1)],
)
def test_runs_at_once(
    small: Study,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    threads: int,
    devices: int,
    cores: int,
    expected: int,
) -> None:
    monkeypatch.setattr(study, "_cores", lambda: cores)
    parallel = ParallelConfig(devices=devices, accelerator="cpu")
    assert replace(small, workers=workers, threads=threads, parallel=parallel).resolved_workers == expected


def test_on_a_gpu_one_run_at_a_time(small: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "_cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert replace(small, parallel=ParallelConfig(accelerator="auto")).resolved_workers == 1
    assert replace(small, parallel=ParallelConfig(accelerator="cpu")).resolved_workers == 8


def test_the_plan_as_printed(small: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "_cores", lambda: 2)
    console = Console(file=io.StringIO(), width=200)
    small.print_plan(console, small.seconds)
    output = printed(console)
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in output.splitlines() if "seed" in line}
    assert list(rows) == [run.name for run in small.runs]
    for run in small.runs:
        values = [value.strip() for value in rows[run.name]]
        seconds = run.training.steps * (0.5 if run.family == "dense" else 1.0)
        assert values == [
            f"{run.cost.total_parameters:,}",
            f"{run.cost.total_active_parameters:,}",
            "1",
            f"{run.tokens:,}",
            f"{run.tokens / len(small.prepared.train):.2f}",
            f"{run.training.steps:,}",
            "4",
            f"{0.4 / run.dim:.2g}",
            "0.1",
            f"{run.flops['exact']:.3g}".replace("e+0", "e"),
            f"{run.flops['exact'] / run.budget:.4f}",
            f"{run.memory().training / 1e6:.0f}",
            f"{seconds:.0f}",
        ]
    total = sum(run.training.steps * small.seconds[run.name] for run in small.runs)
    flops = sum(run.flops["exact"] for run in small.runs)
    assert f"{flops:.3g} FLOPs in all; training takes about {total / 2 / 60:.1f} minutes with 2 runs at once" in output
    assert f"({total / 60:.1f} one by one" in output
    notes = [line for line in output.splitlines() if line.startswith("note:")]
    assert notes == [f"note: {line}" for line in grid_warnings(small.runs)]
    assert "2 of dense, 2 of moe" in notes[0]


def test_where_a_step_is_too_large_to_try_out_the_time_is_unknown(
    small: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(run.cost.training_flops["exact"] for run in small.runs) * small.training.tokens_per_step
    assert study.largest_step(small.runs) == pytest.approx(largest)
    assert set(small.trial_seconds()) == {run.name for run in small.runs}
    assert not small.folder.step_seconds.exists()  # a dry run keeps nothing
    monkeypatch.setattr(study, "DRY_RUN_STEP", 0.99 * largest)
    assert small.trial_seconds() == {}
    console = Console(file=io.StringIO(), width=200)
    small.print_plan(console, {})
    output = printed(console)
    assert [line.split("│")[-2].strip() for line in output.splitlines() if "seed" in line] == ["?"] * len(small.runs)
    assert f"time unknown: a step takes up to {largest:.1e} FLOPs" in output


def test_a_plan_that_needs_more_text_than_there_is_says_so(small: Study) -> None:
    long = replace(small, grid=Grid((IsoFLOP(2e10, (16,)),), families=("dense",), seeds=1))
    console = Console(file=io.StringIO(), width=200)
    long.print_plan(console, long.seconds)
    assert f"note: budget 2e10 needs {long.runs[0].tokens:,} tokens but" in printed(console)


def test_only_the_main_process_measures_and_claims(small: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    small.claim_folder()
    assert not small.folder.path.exists()
    assert set(small.seconds.values()) == {0.0}


def test_a_study_that_cannot_be_planned_claims_no_folder(small: Study) -> None:
    bad = replace(small, grid=Grid((IsoFLOP(10.0, (16,)),)))
    with pytest.raises(ValueError, match=r"flops=10.0: it must be at least"):
        bad.claim_folder()
    assert not bad.folder.path.exists()
    small.claim_folder()
    assert small.folder.settings.read_text().startswith("grid: small\n")


def test_what_the_settings_come_to_is_claimed_with_them(small: Study, tmp_path: Path) -> None:
    small.claim_folder()
    claimed = small.folder.settings.read_text()
    for fact in (small.prepared.digest, "precision: 32-true", "device: cpu", "threads: 1"):
        assert fact in claimed
    dropped = json.loads((small.folder.path / "corpus_dropped.json").read_text())
    assert len(dropped) == len(small.prepared.report.dropped)
    with pytest.raises(ValueError, match="threads"):
        replace(small, threads=2).claim_folder()


def test_the_report_is_told_how_it_was_made(small: Study) -> None:
    told = small.description("A title", "A question?")
    assert (told.title, told.question, told.config) == ("A title", "A question?", "grid: small\n")
    assert told.planned_runs == tuple(run.name for run in small.runs)
    assert told.precision == "32-true"
    assert any(small.prepared.digest[:16] in line for line in told.corpus)
    assert any("20 validation windows of 32 tokens" in line for line in told.conventions)


@pytest.mark.parametrize(("load", "shared"), [(0.9, False), (3.25, True)])
def test_the_report_is_told_when_steps_were_not_timed_alone(small: Study, load: float, shared: bool) -> None:
    small.claim_folder()
    small.folder.step_load.write_text(json.dumps(load))
    told = small.description("A title", "A question?").seconds_source
    assert ("shared" in told) == shared
    assert ("load average 3.25" in told) == shared
