"""Where a run stops, in real Trainers."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
from training_cases import MODEL, budget, corpus, training

from toolkit.models import DecoderConfig
from toolkit.training import ComputeBudget, LanguageModel, StepBatches, TrainingConfig

DENSE = DecoderConfig(vocab_size=256, dim=16, blocks=MODEL.blocks[1:2])


def train(flops: float, config: TrainingConfig, folder: Path, resume: str | None = None) -> ComputeBudget:
    counter, text = ComputeBudget(flops), corpus()
    trainer = lightning.Trainer(
        accelerator="cpu",
        callbacks=[counter],
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
    )
    module = LanguageModel(DENSE, config)
    trainer.fit(module, StepBatches(text.train, text.validation, config, 4), ckpt_path=resume, weights_only=True)
    counter.steps = trainer.global_step  # type: ignore[attr-defined]
    trainer.save_checkpoint(folder / "run.ckpt")
    return counter


@pytest.mark.parametrize(("steps", "expected"), [(0.6, 1), (1.0, 1), (6.4, 6), (6.6, 7), (9.0, 9)])
def test_a_run_ends_at_the_step_nearest_to_its_budget(tmp_path: Path, steps: float, expected: int) -> None:
    config = training(steps=10)
    flops = budget(config, DENSE, steps)
    counter = train(flops, config, tmp_path)
    assert counter.steps == expected  # type: ignore[attr-defined]
    assert counter.spent == pytest.approx(budget(config, DENSE, expected))
    assert abs(counter.spent - flops) <= 0.5 * budget(config, DENSE, 1) * (1 + 1e-9)
    assert counter.tokens == expected * 4 * 32


def test_the_plan_s_steps_do_not_stop_it(tmp_path: Path) -> None:
    config = training(steps=2)
    assert train(budget(config, DENSE, 5), config, tmp_path).tokens == 5 * 4 * 32


def test_a_budget_below_a_step_is_refused_before_the_step(tmp_path: Path) -> None:
    config = training(steps=10)
    with pytest.raises(ValueError, match=r"flops=.*: it must be at least one step's"):
        train(budget(config, DENSE, 0.4), config, tmp_path)


@pytest.mark.parametrize("flops", [0.0, -1e9])
def test_a_budget_must_be_positive(flops: float) -> None:
    with pytest.raises(ValueError, match=f"flops={flops}: it must be positive"):
        ComputeBudget(flops)


def test_what_is_spent_is_in_the_checkpoint(tmp_path: Path) -> None:
    config = training(steps=10)
    train(budget(config, DENSE, 4), config, tmp_path)
    resumed = train(budget(config, DENSE, 7), config, tmp_path, resume=str(tmp_path / "run.ckpt"))
    assert resumed.steps == 7  # type: ignore[attr-defined]
    assert resumed.spent == pytest.approx(budget(config, DENSE, 7))
    assert resumed.tokens == 7 * 4 * 32


def test_a_run_whose_budget_is_spent_does_no_step(tmp_path: Path) -> None:
    config = training(steps=10)
    train(budget(config, DENSE, 4), config, tmp_path)
    for flops in (budget(config, DENSE, 4.4), budget(config, DENSE, 2)):
        resumed = train(flops, config, tmp_path, resume=str(tmp_path / "run.ckpt"))
        assert resumed.steps == 4  # type: ignore[attr-defined]
        assert resumed.tokens == 4 * 4 * 32
