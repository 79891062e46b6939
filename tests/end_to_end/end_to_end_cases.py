"""How these tests start the study's script and the training script, and compare what they reached."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import toolkit
from toolkit.scaling import RunResult

ROOT = Path(toolkit.__file__).parents[1]
SCRIPT = ROOT / "experiments" / "dense_vs_sparse.py"
TRAINING_SCRIPT = Path(__file__).parent / "train_twice.py"
BY_CLOCK = {"seconds", "seconds_wall"}

Settings = dict[str, str]


def arguments(settings: Settings, **more: str) -> list[str]:
    return [part for name, value in {**settings, **more}.items() for part in (f"--{name}", value)]


def environment() -> dict[str, str]:
    """This process's, without what a launcher may have left in it."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def deterministic(rows: Sequence[RunResult]) -> list[dict[str, Any]]:
    """All but what a clock says; floats as text, in which nan equals nan."""
    return [{name: repr(value) for name, value in asdict(row).items() if name not in BY_CLOCK} for row in rows]
