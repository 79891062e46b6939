"""The tests of scaling import the modules beside them, and leave their process as it was."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.data import CorpusConfig
from toolkit.parallel import ParallelConfig
from toolkit.scaling import Family, Grid, IsoFLOP, ModelShape, Study, StudyFolder, study
from toolkit.training import TrainingConfig

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Training flushes denormals to zero and sets threads for its whole process."""
    environment = dict(os.environ)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for number in range(12):
        (folder / f"file{number}.txt").write_text(" ".join(rng.choice(["alpha", "beta", "loop", "x"], 900)))
    return folder


@pytest.fixture
def small(text: Path, tmp_path: Path) -> Study:
    return Study(
        corpus=CorpusConfig(paths=(str(text),), validation_share=0.3),
        shape=ModelShape((Family("dense"), Family("moe", num_experts=4)), layers=1),
        grid=Grid((IsoFLOP(4e8, (16, 24)),), families=("dense", "moe"), seeds=2),
        training=TrainingConfig(steps=1, context=32, batch_size=4, precision="32-true"),
        parallel=ParallelConfig(accelerator="cpu"),
        folder=StudyFolder(tmp_path / "study"),
        cache=text.parent / "cache",
        workers=0,
        threads=1,
        validation_windows=20,
        settings="grid: small\n",
    )


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take as long as it says here: half a second for dense models, one for the others."""

    def timed(runs: Any, *where: Any) -> dict[str, float]:
        return {run.name: 0.5 if run.family == "dense" else 1.0 for run in runs}

    monkeypatch.setattr(study, "step_seconds", timed)
