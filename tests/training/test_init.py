"""Lightning, which takes seconds to import, is imported when a name that needs it is first used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import toolkit
from toolkit import training


def test_lightning_is_imported_by_the_names_that_need_it_and_by_nothing_else() -> None:
    code = """
import sys
sys.modules["lightning"] = None  # importing it is an error from here on
import toolkit.training, toolkit.scaling, toolkit.scaling.cli
from toolkit.training import TrainingConfig, build_optimizer, probe_step_seconds, resolve_precision, training_loss
for name in ("fit", "Fitted", "LanguageModel", "ComputeBudget", "RouterMonitor", "RunMetrics", "StepBatches"):
    try:
        getattr(toolkit.training, name)
    except ImportError as error:
        assert "lightning" in str(error)
    else:
        print(name)
"""
    root = Path(toolkit.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""


def test_every_name_that_is_offered_is_there() -> None:
    assert all(getattr(training, name) is not None for name in training.__all__)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        training.fitt  # noqa: B018
