"""Two processes that share the batch train as one does, however they were started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end_cases import SCRIPT, TRAINING_SCRIPT, Settings, arguments, environment
from train_twice import STEPS, train

from toolkit.scaling import StudyFolder

TOLERANCE = {"32-true": 1e-5, "64-true": 1e-10}
LAUNCHERS = {
    "lightning": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(folder, devices=1)
    torch.set_flush_denormal(False)  # training leaves it on for its process
    return folder


@pytest.fixture(scope="module", params=LAUNCHERS)
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    command = [*LAUNCHERS[request.param], str(TRAINING_SCRIPT), str(folder), "2"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.mark.parametrize("precision", TOLERANCE)
def test_two_processes_give_one_process_s_losses(alone: Path, together: Path, precision: str) -> None:
    def curve(folder: Path, name: str) -> dict[int, float]:
        rows = [json.loads(line) for line in (folder / precision / "metrics.jsonl").read_text().splitlines()]
        return {row["step"]: row[name] for row in rows if name in row}

    losses = curve(alone, "train/loss")
    assert list(losses) == list(range(1, STEPS + 1))
    assert curve(together, "train/loss") == pytest.approx(losses, abs=TOLERANCE[precision], rel=0)
    bits = curve(alone, "validation/bits_per_byte")
    assert list(bits) == [10, 20, 30]
    assert curve(together, "validation/bits_per_byte") == pytest.approx(bits, abs=TOLERANCE[precision], rel=0)
    assert losses[STEPS] < losses[1] - 0.5  # there is something to agree on


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_routers_figures_are_the_global_batch_s(alone: Path, together: Path, precision: str) -> None:
    with np.load(alone / precision / "load.npz") as one, np.load(together / precision / "load.npz") as two:
        assert set(one.files) == set(two.files) == {"steps", "layer0", "layer2"}
        for name in one.files:
            np.testing.assert_allclose(two[name], one[name], atol=1e-12)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_what_was_reached_and_spent_is_the_same(alone: Path, together: Path, precision: str) -> None:
    one, two = (json.loads((folder / precision / "fitted.json").read_text()) for folder in (alone, together))
    assert (two["steps"], two["tokens"], two["flops"]) == (one["steps"], one["tokens"], one["flops"])
    for name in ("bits_per_byte", "train_loss", "max_violation", "token_entropy", "dropped_share"):
        assert two[name] == pytest.approx(one[name], abs=TOLERANCE[precision], rel=0)


def test_the_study_on_two_devices_is_the_study_on_one(study: Settings, unbroken: StudyFolder, tmp_path: Path) -> None:
    ddp = arguments(study, out=str(tmp_path), devices="2", strategy="ddp", accelerator="cpu")
    command = [sys.executable, str(SCRIPT), *ddp]
    run = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    one, two = unbroken.table.read(), StudyFolder(tmp_path).table.read()
    assert [row.run for row in two] == [row.run for row in one]
    for alone, shared in zip(one, two, strict=True):
        assert shared.bits_per_byte == pytest.approx(alone.bits_per_byte, abs=1e-10, rel=0)
        assert shared.train_loss == pytest.approx(alone.train_loss, abs=1e-10, rel=0)
        assert (shared.steps, shared.tokens, shared.flops_spent) == (alone.steps, alone.tokens, alone.flops_spent)
        assert shared.max_violation == pytest.approx(alone.max_violation, abs=1e-9, nan_ok=True)
    assert (tmp_path / "report.md").exists()
    assert run.stdout.count("Report: ") == 1  # one process speaks for both
    assert run.stdout.count("[4/4] ") == 1
