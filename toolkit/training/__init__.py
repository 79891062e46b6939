"""Training under Lightning: the module, its callbacks, and one run in one folder.

The settings and the parts that need no Lightning are imported at once; the others when first named,
since importing Lightning takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from toolkit.training.config import TrainingConfig
from toolkit.training.optimizer import build_optimizer
from toolkit.training.precision import resolve_precision
from toolkit.training.probe import probe_step_seconds, time_steps
from toolkit.training.schedule import learning_rate_factor
from toolkit.training.step import next_token_nll, training_loss
from toolkit.training.task_training import TaskRun, train_on_task, with_budget

if TYPE_CHECKING:
    from toolkit.training.batches import StepBatches
    from toolkit.training.budget import ComputeBudget
    from toolkit.training.fitted import Fitted
    from toolkit.training.language_model import LanguageModel
    from toolkit.training.metrics import RunMetrics
    from toolkit.training.router_monitor import RouterMonitor
    from toolkit.training.run import fit

_NEED_LIGHTNING = {
    "ComputeBudget": "budget",
    "Fitted": "fitted",
    "LanguageModel": "language_model",
    "RouterMonitor": "router_monitor",
    "RunMetrics": "metrics",
    "StepBatches": "batches",
    "fit": "run",
}

__all__ = [
    "ComputeBudget",
    "Fitted",
    "LanguageModel",
    "RouterMonitor",
    "RunMetrics",
    "StepBatches",
    "TaskRun",
    "TrainingConfig",
    "build_optimizer",
    "fit",
    "learning_rate_factor",
    "next_token_nll",
    "probe_step_seconds",
    "resolve_precision",
    "time_steps",
    "train_on_task",
    "training_loss",
    "with_budget",
]


def __getattr__(name: str) -> Any:
    if name not in _NEED_LIGHTNING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NEED_LIGHTNING[name]}"), name)
