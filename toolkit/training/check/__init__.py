"""Checks before a long run: a small model first, each question answered with a figure.

``python -m toolkit.scaling.check`` asks them of a study's settings.
"""

from toolkit.training.check.finding import STATUSES, Finding
from toolkit.training.check.learning import check_gradients, check_loading, check_loss, check_validation
from toolkit.training.check.masks import check_masks, input_support
from toolkit.training.check.sizes import check_memory, check_tokens
from toolkit.training.check.trial import Trial, run_trial

__all__ = [
    "STATUSES",
    "Finding",
    "Trial",
    "check_gradients",
    "check_loading",
    "check_loss",
    "check_masks",
    "check_memory",
    "check_tokens",
    "check_validation",
    "input_support",
    "run_trial",
]
