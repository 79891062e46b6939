"""Several trials are answered for by the worst of them."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from training_cases import MODEL, corpus, training

from toolkit.parallel import ParallelConfig
from toolkit.training.check import CheckSettings, Trial, Validation, check_trials, run_trials, trial_device

SETTINGS = CheckSettings(trial_steps=4, trials=2, effect=0.1)


def trial(bits: float) -> Trial:
    """A straight line down, and a validation."""
    losses = tuple(4 - 3 * step / 99 for step in range(100))
    held = Validation(100, np.full(8, 10 * bits * math.log(2)), np.full(8, 10.0))
    return Trial(losses, (1.0,) * 100, (0.0,) * 100, (1.0,) * 100, "", (held,))


def statuses(*trials: Trial) -> dict[str, str]:
    return {found.check: found.status for found in check_trials(trials, SETTINGS, 1, 100)}


def test_the_worst_trial_counts() -> None:
    sound = trial(1.0)
    assert set(statuses(sound, trial(1.001)).values()) == {"pass"}
    rising = replace(sound, losses=sound.losses[::-1])
    assert statuses(sound, rising, sound)["loss"] == "fail"
    slow = replace(sound, loading=(1.0,) * 100)
    assert statuses(sound, slow)["loading"] == "fail"


def test_a_trial_that_ended_early_has_no_validation() -> None:
    ended = replace(trial(1.0), not_finite="blocks.0.attention.q_proj.weight", validations=())
    found = {each.check: each for each in check_trials([trial(1.0), ended], SETTINGS, 1, 100)}
    assert found["gradients"].status == found["validation"].status == "fail"
    assert "blocks.0.attention.q_proj.weight" in found["gradients"].figure


def test_trials_differ_in_the_seed_alone() -> None:
    first, second = run_trials(MODEL, training(), corpus(), SETTINGS, "cpu", 8)
    again = run_trials(MODEL, training(seed=5), corpus(), SETTINGS, "cpu", 8)[1]  # seeds are the trials' own
    assert first.losses != second.losses
    assert again.losses == second.losses
    assert len(first.losses) == 4


def test_a_run_meant_for_the_cpu_is_tried_there() -> None:
    assert trial_device(ParallelConfig(accelerator="cpu")) == "cpu"
    assert trial_device(ParallelConfig(devices=4096)) in ("cpu", "cuda")  # more than there are: a trial takes one


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"trials": 1}, "trials=1: it must be 2 or more"), ({"effect": 0}, "effect=0: it must be positive")],
)
def test_bad_settings_are_refused(setting: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CheckSettings(**setting)
