"""Runs of training through Lightning, in as many processes as there are."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, MoEConfig
from toolkit.parallel import ParallelConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

STEPS = 6
ATTENTION = AttentionConfig(heads=2, dropout_p=0.2)
NOISY = DecoderConfig(
    256, 16, (BlockConfig(ATTENTION, MoEConfig(16, 4, 2, router="TopKRouter(noise=GaussianNoise())")),)
)


def run(folder: Path, parallel: ParallelConfig, model: DecoderConfig | None = None) -> dict[str, Any]:
    """What a run of ``STEPS`` steps in fp64 reached, as ``Fitted`` says."""
    from training_cases import MODEL, budget, corpus, training

    from toolkit.training import fit

    config = training(
        steps=STEPS,
        precision="64-true",
        gradient_clip=0.1,
        log_every=1,
        evaluations=2,
        batch_size=4,
        learning_rate=1e-2,
    )
    model = MODEL if model is None else model
    spent = budget(config, model)
    return asdict(fit(model, config, corpus(), folder, spent, parallel=parallel, validation_count=8))


def interrupt(folder: Path, parallel: ParallelConfig, after: int, model: DecoderConfig | None = None) -> None:
    """Such a run that is asked to end after so many steps."""
    from toolkit.training import LanguageModel
    from toolkit.training.interruption import Interrupted

    step = LanguageModel.optimizer_step

    def step_and_ask(module: LanguageModel, *args: Any, **kwargs: Any) -> None:
        step(module, *args, **kwargs)
        if module.global_step + 1 == after:  # Lightning counts the step when this is done
            signal.raise_signal(signal.SIGTERM)

    LanguageModel.optimizer_step = step_and_ask  # type: ignore[method-assign]
    try:
        run(folder, parallel, model)
    except Interrupted as interrupted:
        assert interrupted.step == after
    else:
        raise AssertionError("the run went on to its end")
    finally:
        LanguageModel.optimizer_step = step  # type: ignore[method-assign]


def run_both(folder: Path, first: ParallelConfig, then: ParallelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run spread as ``first``; and one that goes on, after two steps, spread as ``then``."""
    whole = run(folder / "whole", first)
    interrupt(folder / "broken", first, 2)
    return whole, run(folder / "broken", then)


@contextmanager
def drawing() -> Iterator[list[int]]:
    """Within it, the next number that this process would draw as each training step begins, and as it ends."""
    from toolkit.training import LanguageModel

    seen, step = [], LanguageModel.training_step

    def peek() -> int:
        return int(torch.randint(2**62, (1,), generator=torch.default_generator.clone_state()))

    def step_and_peek(module: LanguageModel, *args: Any, **kwargs: Any) -> Any:
        seen.append(peek())
        loss = step(module, *args, **kwargs)
        seen.append(peek())
        return loss

    with mock.patch.object(LanguageModel, "training_step", step_and_peek):
        yield seen


def draws(folder: Path, ways: list[ParallelConfig]) -> list[tuple[list[int], int]]:
    """What a run with dropout and noise draws that is spread otherwise every two steps, and how often it is warned."""
    found = []
    for number, parallel in enumerate(ways):
        with drawing() as seen, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if number < len(ways) - 1:
                interrupt(folder, parallel, 2 * number + 2, NOISY)
            else:
                run(folder, parallel, NOISY)
        found.append((seen, sum("random states" in str(one.message) for one in caught)))
    return found
