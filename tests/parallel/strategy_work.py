"""Runs of training through Lightning, in as many processes as there are."""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolkit.parallel import ParallelConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

STEPS = 6


def run(folder: Path, parallel: ParallelConfig) -> dict[str, Any]:
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
    return asdict(fit(MODEL, config, corpus(), folder, budget(config), parallel=parallel, validation_count=8))


def interrupt(folder: Path, parallel: ParallelConfig, after: int) -> None:
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
        run(folder, parallel)
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
