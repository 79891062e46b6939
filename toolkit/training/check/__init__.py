"""Checks before a long run: a small model first, each question answered with a figure.

``python -m toolkit.training.check`` asks them of one run's settings, ``python -m toolkit.scaling.check`` of a study's.
"""

from toolkit.training.check.finding import STATUSES, Finding, conclude
from toolkit.training.check.learning import check_gradients, check_loading, check_loss
from toolkit.training.check.masks import check_masks
from toolkit.training.check.run import RunCheck, check_run
from toolkit.training.check.settings import CheckParser, CheckSettings
from toolkit.training.check.sizes import check_memory, check_tokens
from toolkit.training.check.small import small_model
from toolkit.training.check.support import Support, input_support
from toolkit.training.check.trial import Trial, run_trial
from toolkit.training.check.trials import check_trials, run_trials, trial_device
from toolkit.training.check.validation import Validation, check_validation, window_variance

__all__ = [
    "STATUSES",
    "CheckParser",
    "CheckSettings",
    "Finding",
    "RunCheck",
    "Support",
    "Trial",
    "Validation",
    "check_gradients",
    "check_loading",
    "check_loss",
    "check_masks",
    "check_memory",
    "check_run",
    "check_tokens",
    "check_trials",
    "check_validation",
    "conclude",
    "input_support",
    "run_trial",
    "run_trials",
    "small_model",
    "trial_device",
    "window_variance",
]
