"""A run that is asked to end before it trains, and how a worker's parent learns of one that did."""

from __future__ import annotations

import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
from training_cases import MODEL, WINDOWS, budget, corpus, training

from toolkit.training import fit, run
from toolkit.training.checkpoints import read_checkpoint
from toolkit.training.interruption import Interrupted
from toolkit.training.termination import START_AGAIN, TermNote

HOOKS = [(run.WatchPeers, "on_fit_start"), (run.RunMetrics, "on_train_start"), (run.FiniteLoss, "on_train_batch_start")]
"""While the trainer is set up; after Lightning has taken the signal; in a step."""


@pytest.mark.parametrize(("callback", "hook"), HOOKS)
def test_asked_at_any_time_it_saves_and_gives_the_signal_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, callback: Any, hook: str
) -> None:
    before, original = signal.getsignal(signal.SIGTERM), getattr(callback, hook)

    def asked(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        original(*arguments)

    monkeypatch.setattr(callback, hook, asked)
    config = training(steps=3)
    with pytest.raises(Interrupted, match="interrupted after step 1") as left:
        fit(MODEL, config, corpus(), tmp_path, budget(config), validation_count=WINDOWS)
    assert left.value.code == START_AGAIN
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_worker_s_parent_gets_all_of_it() -> None:
    again = pickle.loads(pickle.dumps(Interrupted(Path("last.ckpt"), 7)))
    assert (again.code, again.step, again.checkpoint) == (START_AGAIN, 7, Path("last.ckpt"))
    assert str(again) == "interrupted after step 7, which last.ckpt holds; start it again to go on"


def test_a_run_that_is_asked_in_its_last_validation_ends_by_itself_and_its_sweep_learns_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = run.RunMetrics.on_validation_end

    def asked(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        original(*arguments)

    monkeypatch.setattr(run.RunMetrics, "on_validation_end", asked)
    config = training(steps=3, evaluations=1)
    with TermNote() as sweep:
        fitted = fit(MODEL, config, corpus(), tmp_path, budget(config), validation_count=WINDOWS)
    assert fitted.steps == 3
    assert sweep.asked
