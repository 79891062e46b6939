"""What is timed, in which order, and that nothing is kept of it."""

from __future__ import annotations

import pytest
import torch

from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.training import TrainingConfig, probe, probe_step_seconds, time_steps
from toolkit.training.probe import _stepper

TRAINING = TrainingConfig(steps=1, context=16, batch_size=2, precision="32-true")


def config(dim: int = 16) -> DecoderConfig:
    block = BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(24))
    moe = BlockConfig(AttentionConfig(heads=2), MoEConfig(8, 4, 2))
    return DecoderConfig(vocab_size=13, dim=dim, blocks=(block, moe))


def test_one_positive_time_for_each_config() -> None:
    seconds = probe_step_seconds([(config(), TRAINING), (config(32), TRAINING)], rounds=2, warmup=1)
    assert len(seconds) == 2
    assert all(isinstance(second, float) and 0 < second < 60 for second in seconds)


def test_nothing_to_time_gives_nothing() -> None:
    assert probe_step_seconds([]) == []


def test_models_take_turns_and_each_keeps_the_median_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []
    taken = {16: iter([100.0, 3.0, 1.0, 50.0]), 32: iter([100.0, 7.0, 9.0, 8.0])}

    def stepper(model: DecoderConfig, training: TrainingConfig, device: torch.device) -> object:
        def step() -> None:
            order.append(model.dim)
            clock[0] += next(taken[model.dim])

        return step

    monkeypatch.setattr(probe, "_stepper", stepper)
    monkeypatch.setattr(probe.time, "perf_counter", lambda: clock[0])
    times = time_steps([(config(16), TRAINING), (config(32), TRAINING)], rounds=3, warmup=1)
    assert order == [16, 32] * 4
    assert times == [[3.0, 1.0, 50.0], [7.0, 9.0, 8.0]]  # the warmup's 100 is not in them
    monkeypatch.setattr(probe, "time_steps", lambda *_: times)
    assert probe_step_seconds([]) == [3.0, 8.0]  # medians


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_timed_step_trains(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    mixed: list[bool] = []
    real = probe.training_loss

    def watched(*arguments: object) -> object:
        mixed.append(torch.is_autocast_enabled("cpu"))
        loss, nll = real(*arguments)  # type: ignore[arg-type]
        losses.append(float(nll))
        return loss, nll

    monkeypatch.setattr(probe, "training_loss", watched)
    settings = TrainingConfig(steps=1, context=16, batch_size=2, precision=precision, learning_rate=0.01)
    step = _stepper(config(), settings, torch.device("cpu"))
    for _ in range(6):
        step()
    assert losses == sorted(losses, reverse=True)  # the same batch each time
    assert set(mixed) == {precision == "bf16-mixed"}
