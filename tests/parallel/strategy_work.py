"""Runs of training through Lightning, in as many processes as there are."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolkit.parallel import ParallelConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

STEPS = 6


def run(folder: Path, parallel: ParallelConfig, stop_after: int | None = None) -> dict[str, Any]:
    """What a run in fp64 reached, as ``Fitted`` says; with ``stop_after`` it ends there, of ``STEPS`` steps."""
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
    spent = budget(config, MODEL, stop_after)
    return asdict(fit(MODEL, config, corpus(), folder, spent, parallel=parallel, validation_count=8))


def run_both(folder: Path, first: ParallelConfig, then: ParallelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run spread as ``first``; and one that goes on, after half its steps, spread as ``then``."""
    whole = run(folder / "whole", first)
    run(folder / "broken", first, STEPS // 2)
    return whole, run(folder / "broken", then)
