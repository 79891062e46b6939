"""Checkpoints of chosen steps: which there are, and that they hold the step they are named after."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_cases import MODEL, WINDOWS, budget, corpus, training

from toolkit.training import fit
from toolkit.training.branch import checkpoint_of
from toolkit.training.kept_checkpoints import KeptCheckpoints

CONFIG = training(steps=12, checkpoint_minutes=1e-6)  # the last one is saved after every step, beside those kept


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(MODEL, CONFIG, corpus(), folder, budget(CONFIG), validation_count=WINDOWS, keep_at=(5, 6, 12))
    return folder


def test_the_steps_asked_for_are_kept_and_no_others(folder: Path) -> None:
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"step5.ckpt", "step6.ckpt", "step12.ckpt", "last.ckpt"}


@pytest.mark.parametrize("step", [5, 6, 12])  # five is recorded by the callbacks, six validated
def test_each_holds_all_of_its_step(folder: Path, step: int) -> None:
    saved = torch.load(checkpoint_of(folder, step), weights_only=True)
    callbacks = saved["callbacks"]
    assert saved["global_step"] == step
    assert callbacks["ComputeBudget"]["tokens"] == step * CONFIG.tokens_per_step
    assert callbacks["RunMetrics"]["losses"][-1][0] == {5: 5, 6: 5, 12: 10}[step]
    assert callbacks["RouterMonitor"]["steps"] == [recorded for recorded in (1, 5, 10) if recorded <= step]
    assert {state["step"].item() for state in saved["optimizer_states"][0]["state"].values()} == {step}
    assert saved["lr_schedulers"][0]["last_epoch"] == step


def test_the_one_of_the_end_is_the_last(folder: Path) -> None:
    kept, last = (torch.load(path, weights_only=True) for path in (
        checkpoint_of(folder, 12), folder / "checkpoints" / "last.ckpt",
    ))  # fmt: skip
    torch.testing.assert_close(kept["state_dict"], last["state_dict"], rtol=0, atol=0)


@pytest.mark.parametrize("step", [0, -1, 13])
def test_a_step_that_is_not_the_run_s_is_refused(tmp_path: Path, step: int) -> None:
    with pytest.raises(ValueError, match=f"keep_at={step}: it must be between 1 and steps=12"):
        KeptCheckpoints(tmp_path, (5, step), 12)
