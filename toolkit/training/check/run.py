"""The checks of one run: a small model of its family is tried, its sizes are counted as they are meant."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from toolkit.checks import require, require_positive
from toolkit.compute import cost
from toolkit.models import Decoder, DecoderConfig
from toolkit.training.check.finding import Finding
from toolkit.training.check.masks import check_masks
from toolkit.training.check.settings import CheckSettings
from toolkit.training.check.sizes import check_memory, check_tokens
from toolkit.training.check.small import small_model
from toolkit.training.check.trials import check_trials, run_trials, trial_device
from toolkit.training.config import TrainingConfig
from toolkit.training.run_settings import RunSettings


@dataclass(frozen=True)
class RunCheck:
    """A run, and how it is to be checked.

    Attributes:
        run: as it is meant.
        settings: of the checks.
        small_dim, small_layers: of the model that is tried, see :func:`small_model`.
        small_batch: sequences in a step of a trial; None for the run's.
        seeds: runs of each kind that will be compared.
        cache: folder of tokenised text.

    Raises:
        ValueError: if a number is not positive, or the small batch larger than the run's.
    """

    run: RunSettings
    settings: CheckSettings = field(default_factory=CheckSettings)
    small_dim: int = 128
    small_layers: int | None = None
    small_batch: int | None = None
    seeds: int = 1
    cache: Path = Path("runs/cache")

    def __post_init__(self) -> None:
        require_positive(seeds=self.seeds)
        whole, batch = self.run.training.batch_size, self.small_batch
        require(batch is None or 0 < batch <= whole, "small_batch", batch, f"1 to the run's {whole}, or None")
        small_model(self.run.model, self.small_dim, self.small_layers)  # refuses sizes that make none

    @cached_property
    def model(self) -> DecoderConfig:
        """What is tried."""
        return small_model(self.run.model, self.small_dim, self.small_layers)

    @cached_property
    def training(self) -> TrainingConfig:
        """How it is."""
        return replace(self.run.training, batch_size=self.small_batch or self.run.training.batch_size)

    @property
    def compute_ratio(self) -> float:
        """FLOPs of a sequence in the run, of one in a trial."""
        whole, small = (cost(model, self.training.context) for model in (self.run.model, self.model))
        return whole.training_flops["exact"] / small.training_flops["exact"]

    def describe(self) -> str:
        """One line: what is tried, and in what that differs from the run."""
        small, run = self.model, self.run
        count, whole = (cost(model, self.training.context).total_parameters for model in (small, run.model))
        text = f"tried: {count:,} parameters of {whole:,} (width {small.dim} of {run.model.dim}, {len(small.blocks)} "
        text += f"of {len(run.model.blocks)} layers), {self.training.batch_size} of {run.training.batch_size} sequences"
        text += f" a step, {self.settings.trial_steps} of {run.training.steps} steps, on the {self.device_name}"
        text += ", from random weights where the run has others" if run.beginning else ""
        return text + (", on text where the run mixes a task in" if run.mixture else "")

    @property
    def device(self) -> str:
        """Where it is tried, for torch."""
        return trial_device(self.run.parallel)

    @property
    def device_name(self) -> str:
        """The same in words."""
        return {"cuda": "GPU", "cpu": "CPU"}[self.device]


def check_run(check: RunCheck) -> list[Finding]:
    """Every check of one run: of trials of a small model, of its masks, and of the whole model's memory and tokens.

    Raises:
        ValueError: if the settings do not fit the text or the model.
    """
    run, settings = check.run, check.settings
    sizes = [
        check_memory(run.model, run.training, settings.gpu_memory * 1e9, run.parallel),
        check_tokens(run.model, run.training, run.tokens),
    ]
    corpus, windows = run.corpus(check.cache), run.validation_windows
    trials = run_trials(check.model, check.training, corpus, settings, check.device, windows)
    findings = check_trials(trials, settings, check.seeds, run.training.steps, check.compute_ratio)
    torch.manual_seed(0)
    masks = check_masks(Decoder(check.model), min(settings.mask_tokens, run.training.context))
    return [*findings, masks, *sizes]
