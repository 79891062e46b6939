"""What goes wrong in one stage of a pipeline, as every process of the run tells it; and runs in low precision."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from typing import Any

import lightning
from fit_work import CONFIG, MODEL
from lightning.pytorch.callbacks import Callback
from training_cases import corpus

from toolkit.models import DecoderConfig
from toolkit.parallel import ParallelConfig
from toolkit.training import LanguageModel, TrainingConfig
from toolkit.training.batches import StepBatches
from toolkit.training.health import FiniteLoss
from toolkit.training.strategy import MeshStrategy


class Poison(Callback):
    """Makes a parameter NaN before the second step, in whichever process has it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            with suppress(AttributeError):
                module.decoder.get_parameter(self.name).data.fill_(math.nan)


def trained(
    model: DecoderConfig, config: TrainingConfig, parallel: ParallelConfig | None, accumulate: int, *more: Callback
) -> tuple[LanguageModel, lightning.Trainer]:
    """By Lightning alone, without ``fit``."""
    lightning.seed_everything(0, verbose=False)
    module = LanguageModel(model, config)
    trainer = lightning.Trainer(
        accelerator="cpu",
        strategy="auto" if parallel is None else MeshStrategy(parallel),
        devices=1 if parallel is None else 2,
        max_steps=config.steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=config.gradient_clip,
        precision=config.precision,  # type: ignore[arg-type]
        callbacks=[*more],
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, StepBatches(corpus().train, corpus().validation, config, 16))
    return module, trainer


def told(name: str) -> str:
    """What is said of a parameter that became NaN."""
    try:
        trained(
            MODEL,
            replace(CONFIG, steps=3),
            ParallelConfig(pipeline=2, accelerator="cpu"),
            1,
            Poison(name),
            FiniteLoss(),
        )
    except (FloatingPointError, ValueError) as error:
        return str(error)
    return "nothing"


def weights(config: TrainingConfig, parallel: ParallelConfig | None, accumulate: int) -> dict[str, Any]:
    """Of MODEL after training, whole, and its optimizer's state."""
    _, trainer = trained(MODEL, config, parallel, accumulate)
    strategy = trainer.strategy
    moments = strategy.optimizer_state(trainer.optimizers[0])["state"]
    state = {name: tensor.float().numpy() for name, tensor in strategy.lightning_module_state_dict().items()}
    return state | {f"{key} {at}": each.float().numpy() for at, kept in moments.items() for key, each in kept.items()}


def tried(cases: list[tuple[Any, ...]]) -> list[Any]:
    return [work(*arguments) for work, *arguments in cases]
