"""A sound short run passes; a loss, a gradient or a loader at fault fails, and what is doubtful warns."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from training_cases import MODEL, corpus, training

from toolkit.data import TokenWindows, validation_windows
from toolkit.models import Decoder
from toolkit.training.check import Finding, Trial, check_gradients, check_loading, check_loss, run_trial
from toolkit.training.step import next_token_nll

STEPS = 40
TRAINING = training(steps=STEPS, batch_size=16, learning_rate=1e-2)


def trial(**changes: Any) -> Trial:
    torch.manual_seed(0)
    return run_trial(Decoder(MODEL), TRAINING, corpus(), STEPS, **changes)


@pytest.fixture(scope="module")
def sound() -> Trial:
    return trial()


def test_a_sound_model_passes(sound: Trial) -> None:
    assert check_loss(sound).status == "pass", check_loss(sound)
    assert check_gradients(sound).status == "pass"
    assert check_loading(sound).status == "pass", check_loading(sound)
    assert len(sound.losses) == STEPS
    assert [each.step for each in sound.validations] == [10, 20, 40]
    last = sound.validations[-1].bits_per_byte
    assert last == pytest.approx(sound.losses[-1] / math.log(2), rel=0.2)  # a token is a byte


def test_a_trial_is_the_same_again_and_with_layers_computed_again(sound: Trial) -> None:
    torch.manual_seed(0)
    again = run_trial(Decoder(MODEL), replace(TRAINING, recompute="selective"), corpus(), STEPS)
    assert again.losses == sound.losses
    assert again.validations[-1].bits_per_byte == sound.validations[-1].bits_per_byte


def test_validation_is_by_window_and_in_double_precision_where_the_run_is(sound: Trial) -> None:
    """Each window's nats are the model's alone, one by one; in fp64 they have more digits than fp32 holds."""
    torch.manual_seed(0)
    model = Decoder(MODEL)
    held = validation_windows(corpus().validation, 32, 8)
    doubled = run_trial(model, replace(TRAINING, precision="64-true"), corpus(), 2, validation_count=8).validations[-1]
    assert doubled.nll == pytest.approx([next_token_nll(model, one[None], "sum").item() for one in held], rel=1e-12)
    assert np.array_equal(doubled.text_bytes, np.full(8, 32.0))
    assert any(np.float32(nats) != nats for nats in doubled.nll)


def test_a_loss_that_does_not_fall_fails(sound: Trial) -> None:
    torch.manual_seed(0)
    random = lambda step: torch.randint(256, (16, 33), generator=torch.Generator().manual_seed(step))  # noqa: E731
    still = run_trial(Decoder(MODEL), replace(TRAINING, learning_rate=1e-9), corpus(), STEPS, batches=random)
    assert check_loss(still).status == "fail"
    rising = replace(sound, losses=sound.losses[::-1])
    assert check_loss(rising).status == "fail"


@pytest.mark.parametrize(("height", "status"), [(0.0, "pass"), (0.3, "warn"), (0.7, "fail")])
def test_spikes_are_measured_by_what_was_learned(height: float, status: str) -> None:
    """From 4 to 1 in a straight line but for one step: what is learned is 3 x 4/5 and a little."""
    losses = [4 - 3 * step / 99 for step in range(100)]
    losses[60] += height * 2.4
    found = check_loss(Trial(tuple(losses), (1.0,) * 100, (0.0,) * 100, (1.0,) * 100, "", ()))
    assert found.status == status, found


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_fails_by_name(value: float) -> None:
    torch.manual_seed(0)
    model = Decoder(MODEL)
    calls = [0]

    def plant(gradient: Tensor) -> Tensor:
        calls[0] += 1
        return gradient * value if calls[0] == 20 else gradient

    model.blocks[1].attention.o_proj.register_hook(plant)
    planted = run_trial(model, TRAINING, corpus(), STEPS)
    found = check_gradients(planted)
    assert found.status == "fail"
    assert found.figure == "not finite at step 20: blocks.1.attention.o_proj"
    assert [each.step for each in planted.validations] == [10]
    assert all(bool(each.isfinite().all()) for each in model.parameters())


def test_a_loss_that_is_not_finite_fails() -> None:
    torch.manual_seed(0)
    model = Decoder(MODEL)
    with torch.no_grad():
        model.norm.weight.fill_(math.nan)
    planted = run_trial(model, TRAINING, corpus(), STEPS)
    assert check_gradients(planted).figure == "not finite at step 1: loss"
    assert check_loss(planted).status == "fail"


def test_a_slow_loader_fails() -> None:
    windows = TokenWindows(corpus().train, 32, 16, 0)

    def slow(step: int) -> Tensor:
        time.sleep(0.2)
        return windows.batch(step)

    torch.manual_seed(0)
    found = check_loading(run_trial(Decoder(MODEL), TRAINING, corpus(), 5, batches=slow))
    assert found.status == "fail", found


def test_the_share_of_loading_is_of_the_whole_step() -> None:
    def share(loading: float, ratio: float = 1.0) -> Finding:
        return check_loading(Trial((1.0,), (1.0,), (loading,) * 3, (1 - loading,) * 3, "", ()), ratio)

    assert [share(part).status for part in (0.04, 0.1, 0.5)] == ["pass", "warn", "fail"]
    assert "50.0% of a step" in share(0.5).figure
    # A model of nine times the FLOPs: 0.5 / (0.5 + 9 x 0.5) = 10%. That large models run faster is no reason to pass.
    assert [share(part, 9.0).status for part in (0.04, 0.1, 0.5, 0.8)] == ["pass", "warn", "warn", "fail"]
    assert "at least 10.0% of one of the whole model's" in share(0.5, 9.0).figure


def test_a_trial_has_steps() -> None:
    with pytest.raises(ValueError, match="steps=0: it must be positive"):
        run_trial(Decoder(MODEL), TRAINING, corpus(), 0)
    with pytest.raises(ValueError, match="status='good': it must be one of"):
        Finding("loss", "good", "")
