"""A study's parts fit together before anything long begins, and its plan says what it will cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from toolkit.parallel import ParallelConfig
from toolkit.scaling import Grid, IsoFLOP, Study, machine, study

pytestmark = pytest.mark.usefixtures("untimed")


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
    monkeypatch.setattr(machine, "cores", lambda: cores)
    parallel = ParallelConfig(devices=devices, accelerator="cpu")
    assert replace(small, workers=workers, threads=threads, parallel=parallel).resolved_workers == expected


def test_on_a_gpu_one_run_at_a_time(small: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert replace(small, parallel=ParallelConfig(accelerator="auto")).resolved_workers == 1
    assert replace(small, parallel=ParallelConfig(accelerator="cpu")).resolved_workers == 8


def test_a_step_that_is_too_large_is_not_tried_out(small: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(run.cost.training_flops["exact"] for run in small.runs) * small.training.tokens_per_step
    assert study.largest_step(small.runs) == pytest.approx(largest)
    assert set(small.trial_seconds()) == {run.name for run in small.runs}
    assert not small.folder.step_seconds.exists()  # a dry run keeps nothing
    monkeypatch.setattr(study, "DRY_RUN_STEP", 0.99 * largest)
    assert small.trial_seconds() == {}


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
