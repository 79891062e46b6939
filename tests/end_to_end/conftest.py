"""A text, the tiny study that these tests run in several ways, and its results in one process unbroken."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from end_to_end_cases import ROOT, SCRIPT, Settings, arguments

sys.path.insert(0, str(ROOT / "experiments" / "benchmarks"))  # runs that are killed, there for a script too

from toolkit.scaling import StudyFolder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for number in range(16):
        words = rng.choice(["def", "return", "alpha", "beta", "loop", "x", "y", "gamma"], 600)
        (folder / f"file{number}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture(scope="session")
def study(text: Path) -> Settings:
    """Two families, two seeds: four runs."""
    return {
        "corpus.paths": f"[{text}]",
        "corpus.validation_share": "0.3",
        "cache": str(text.parent / "cache"),
        "training.context": "32",
        "training.precision": "64-true",  # so that two processes, which add in another order, stay on the same experts
        "training.batch_size": "4",
        "training.log_every": "5",
        "training.evaluations": "2",
        "training.checkpoint_minutes": "0.0005",
        "validation_windows": "40",
        "grid.budgets": "[{flops: 1.2e9, dims: [16]}]",
        "grid.families": "[dense, moe+window]",
        "grid.seeds": "2",
        "model.arms": "[{name: dense}, {name: moe+window, num_experts: 4, patterns: ['Causal() & SlidingWindow(8)']}]",
    }


@pytest.fixture(scope="session")
def unbroken(study: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyFolder]:
    """The study's folder after one process ran it all, one run after the other."""
    folder = tmp_path_factory.mktemp("unbroken")
    spec = importlib.util.spec_from_file_location("dense_vs_sparse", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(arguments(study, out=str(folder), workers="1"))
    torch.set_flush_denormal(False)  # training leaves it on for its process
    torch.set_num_threads(1)
    yield StudyFolder(folder)
