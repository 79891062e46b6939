"""Scripts of experiments/ as modules, and a text small enough to run them on."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np

import toolkit

ROOT = Path(toolkit.__file__).parents[1]


def load_script(name: str) -> ModuleType:
    """``experiments/<name>.py``, imported."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_text(folder: Path) -> Path:
    """Twelve files of four words in a random order, the same every time; gives ``folder`` back."""
    rng = np.random.default_rng(0)
    for number in range(12):
        (folder / f"file{number}.txt").write_text(" ".join(rng.choice(["alpha", "beta", "loop", "x"], 400)))
    return folder
