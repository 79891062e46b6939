"""Trials that differ in the seed alone, and what they answer together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from toolkit.data import Corpus
from toolkit.models import Decoder, DecoderConfig
from toolkit.parallel import ParallelConfig
from toolkit.training.check.finding import STATUSES, Finding
from toolkit.training.check.learning import check_gradients, check_loading, check_loss
from toolkit.training.check.settings import CheckSettings
from toolkit.training.check.trial import Trial, run_trial
from toolkit.training.check.validation import check_validation
from toolkit.training.config import TrainingConfig


def trial_device(parallel: ParallelConfig) -> str:
    """Where a trial is run: on a GPU if there is one and the run is not meant for the CPU."""
    return "cuda" if parallel.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def run_trials(
    model: DecoderConfig,
    training: TrainingConfig,
    corpus: Corpus,
    settings: CheckSettings,
    device: str,
    validation_count: int,
) -> list[Trial]:
    """Short runs of ``model``, with the seeds 0, 1, ... for its weights and the order of the data."""
    trials = []
    for seed in range(settings.trials):
        torch.manual_seed(seed)
        decoder, seeded = Decoder(model).to(device), replace(training, seed=seed)
        trials.append(run_trial(decoder, seeded, corpus, settings.trial_steps, validation_count=validation_count))
    return trials


def check_trials(
    trials: Sequence[Trial], settings: CheckSettings, seeds: int, run_steps: int, compute_ratio: float = 1.0
) -> list[Finding]:
    """Loss, gradients and loading, each of the trial where it is worst; and whether validation tells the effect.

    Args:
        trials: short runs that differ in the seed alone.
        settings: the effect sought.
        seeds: runs of each kind that will be compared.
        run_steps: of the run that they stand for.
        compute_ratio: FLOPs of one of its steps, of one of theirs.
    """
    findings = [_worst(check, trials) for check in (check_loss, check_gradients)]
    findings.append(_worst(lambda trial: check_loading(trial, compute_ratio), trials))
    ended = [trial for trial in trials if trial.not_finite]
    if ended:
        steps = len(ended[0].losses)
        return [*findings, Finding("validation", "fail", f"a trial ended at step {steps}, before it was validated")]
    courses = [trial.validations for trial in trials]
    return [*findings, check_validation(courses, settings.effect, seeds, run_steps)]


def _worst(check: Callable[[Trial], Finding], trials: Sequence[Trial]) -> Finding:
    return max((check(trial) for trial in trials), key=lambda finding: STATUSES.index(finding.status))
