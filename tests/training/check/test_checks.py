"""Each check passes on a sound model and fails on the fault it is for."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from training_cases import MODEL, corpus, training

from toolkit.attention import Causal, Full, Pattern, attention
from toolkit.compute import cost, memory
from toolkit.data import TokenWindows
from toolkit.layers import SelfAttention
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel import ParallelConfig
from toolkit.training.check import (
    Finding,
    Trial,
    check_gradients,
    check_loading,
    check_loss,
    check_masks,
    check_memory,
    check_tokens,
    check_validation,
    input_support,
    run_trial,
)

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
    assert 0 < sound.bits_per_byte < 8
    assert sound.bits_per_byte == pytest.approx(sound.losses[-1] / math.log(2), rel=0.2)  # a token is a byte


def test_a_trial_is_the_same_again_and_with_layers_computed_again(sound: Trial) -> None:
    torch.manual_seed(0)
    again = run_trial(Decoder(MODEL), replace(TRAINING, recompute="selective"), corpus(), STEPS)
    assert again.losses == sound.losses
    assert again.bits_per_byte == sound.bits_per_byte


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
    found = check_loss(Trial(tuple(losses), (1.0,) * 100, (0.0,) * 100, (1.0,) * 100, "", 1.0))
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
    assert math.isnan(planted.bits_per_byte)
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
    def share(loading: float) -> Finding:
        return check_loading(Trial((1.0,), (1.0,), (loading,) * 3, (1 - loading,) * 3, "", 1.0))

    assert [share(part).status for part in (0.04, 0.1, 0.5)] == ["pass", "warn", "fail"]
    assert "50.0% of a step" in share(0.5).figure


def test_noise_beside_the_effect_sought() -> None:
    """t of 2 degrees of freedom is 4.3027 (any table); sd 0.01, two runs of each kind: 4.3027 x 0.01 x 1."""
    values = (1.0, 1.01, 1.02)
    assert [check_validation(values, effect, 2).status for effect in (0.05, 0.03, 0.01)] == ["pass", "warn", "fail"]
    assert "difference of 0.0430" in check_validation(values, 0.01, 2).figure
    assert "difference of 0.0215" in check_validation(values, 0.01, 8).figure
    assert check_validation((1.0, math.nan), 1.0, 2).status == "fail"
    with pytest.raises(ValueError, match="bits_per_byte=.*two trials"):
        check_validation((1.0,), 0.1, 2)


WINDOW = AttentionConfig(heads=2, pattern="Causal() & SlidingWindow(4)")
CAUSAL = {
    "window": (BlockConfig(WINDOW, FeedForwardConfig(16)),) * 2,
    "moe": (BlockConfig(WINDOW, MoEConfig(16, 4, 2)), BlockConfig(AttentionConfig(heads=2), MoEConfig(16, 4, 2))),
    "moba": (BlockConfig(AttentionConfig(heads=2, pattern="MoBA(block=4, top_k=2)"), FeedForwardConfig(16)),),
    "depths": (BlockConfig(WINDOW, FeedForwardConfig(16), depth_capacity=0.5),) * 2,
}


def decoder(*blocks: BlockConfig) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig(32, 16, blocks))


@pytest.mark.parametrize("blocks", CAUSAL.values(), ids=CAUSAL)
def test_masks_that_keep_what_they_say_pass(blocks: tuple[BlockConfig, ...]) -> None:
    assert check_masks(decoder(*blocks), 20).status == "pass"


def test_a_window_of_two_layers_reaches_as_far_as_both() -> None:
    """2 layers of a window of 4 see 2 x 3 tokens back."""
    back = torch.arange(20)[:, None] - torch.arange(20)
    assert torch.equal(input_support(decoder(*CAUSAL["window"]), 20), (back >= 0) & (back <= 6))


@pytest.mark.parametrize(("seen", "later"), [(Causal(), 0), (Full(), 190)], ids=["too-far", "future"])
def test_attention_that_ignores_its_mask_fails(seen: Pattern, later: int) -> None:
    """Beyond the window, and into the future: 20 x 19 / 2 pairs."""
    model = decoder(*CAUSAL["window"])

    def leaking(q: Tensor, k: Tensor, v: Tensor, _: Any, **settings: Any) -> Tensor:
        return attention(q, k, v, seen, **settings)

    for part in model.modules():
        if isinstance(part, SelfAttention):
            part.attend = leaking
    found = check_masks(model, 20)
    assert found.status == "fail"
    assert f", {later} on later tokens" in found.figure


def test_a_pattern_or_a_router_that_looks_ahead_fails() -> None:
    assert (
        check_masks(decoder(BlockConfig(AttentionConfig(pattern="Full()"), FeedForwardConfig(16))), 8).status == "fail"
    )
    soft = MoEConfig(16, 4, 1, router="SoftRouter(slots=2)", causal=False)
    found = check_masks(decoder(BlockConfig(AttentionConfig(), soft)), 8)
    assert found.status == "fail"
    assert "28 on later tokens" in found.figure  # 8 x 7 / 2: all of them


def test_memory_says_what_dominates_and_whether_it_fits() -> None:
    config = training(batch_size=64)
    kept = memory(MODEL, 64, 32)
    found = [check_memory(MODEL, config, kept.training / share) for share in (0.5, 0.95, 1.5)]
    assert [each.status for each in found] == ["pass", "warn", "fail"]
    assert "activations dominate" in found[0].figure
    halves = check_memory(MODEL, config, kept.training / 0.95, ParallelConfig(data=2, accelerator="cpu"))
    assert halves.status == "pass"
    assert "optimizer dominate" in check_memory(MODEL, training(batch_size=1, context=1), 1e9).figure


@pytest.mark.parametrize(("per_parameter", "status", "word"), [
    (2, "warn", "undertrained"), (20, "pass", "near"), (60, "pass", "near"), (500, "warn", "capacity-limited"),
])  # fmt: skip
def test_tokens_for_each_active_parameter(per_parameter: int, status: str, word: str) -> None:
    active = cost(MODEL, 32).total_active_parameters
    found = check_tokens(MODEL, training(steps=round(per_parameter * active / (4 * 32))))
    assert found.status == status
    assert word in found.figure


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="steps=0: it must be positive"):
        run_trial(Decoder(MODEL), TRAINING, corpus(), 0)
    with pytest.raises(ValueError, match="device_bytes=0: it must be positive"):
        check_memory(MODEL, TRAINING, 0)
    with pytest.raises(ValueError, match="status='good': it must be one of"):
        Finding("loss", "good", "")
