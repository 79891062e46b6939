"""Checks of a study before it is run: its smallest model is trained for a moment, its largest is counted.

python -m toolkit.scaling.check experiments/presets/laptop.yaml
python -m toolkit.scaling.check experiments/presets/gpu.yaml --trial-steps 200 --effect 0.005 --grid.seeds 5

The settings are those of ``experiments/dense_vs_sparse.py``. Exit code 1 where a check fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from toolkit.checks import require
from toolkit.models import Decoder
from toolkit.scaling.cli import run_experiment
from toolkit.scaling.sparsity.cli import read_sparsity
from toolkit.scaling.study import Study
from toolkit.training.check import (
    CheckParser,
    CheckSettings,
    Finding,
    check_masks,
    check_memory,
    check_tokens,
    check_trials,
    conclude,
    run_trials,
    trial_device,
)


def read_settings(arguments: Sequence[str]) -> tuple[Study, CheckSettings]:
    """The study of a YAML file, and the checks' own settings.

    Raises:
        ValueError: naming the setting that cannot be used.
    """
    parser = CheckParser("python -m toolkit.scaling.check", __doc__)
    parser.add_argument("settings", type=Path, help="a study's YAML file")
    CheckSettings.add_to(parser)
    options, rest = parser.parse_known_args(list(arguments))
    path, settings = options.settings, CheckSettings.of(options)
    require(path.is_file(), "settings", str(path), "a YAML file of a study's settings")
    study, _ = read_sparsity(["--preset", path.stem, *rest], path.parent, parser.description or "", Path("runs"))
    return study.base, settings


def check_study(study: Study, settings: CheckSettings) -> list[Finding]:
    """Every check: of trials of the smallest model, of every family's masks, of the largest run's sizes."""
    runs = sorted(study.runs, key=lambda run: run.cost.total_parameters)
    small, large = runs[0], max(study.runs, key=lambda run: run.flops["exact"])
    device, windows = trial_device(study.parallel), study.validation_windows
    trials = run_trials(small.model, small.training, study.prepared, settings, device, windows)
    findings = check_trials(trials, settings, study.grid.seeds, small.training.steps)
    families = {run.family: run for run in reversed(runs)}
    for family, run in families.items():
        torch.manual_seed(0)
        found = check_masks(Decoder(run.model), min(settings.mask_tokens, small.training.context))
        findings.append(replace(found, check=f"masks of {family}"))
    findings.append(check_memory(large.model, large.training, settings.gpu_memory * 1e9, study.parallel))
    return [*findings, check_tokens(large.model, large.training)]


def main(arguments: Sequence[str]) -> None:
    """Print a line for every check; exit with 1 where one fails."""
    conclude(check_study(*read_settings(arguments)))


if __name__ == "__main__":
    run_experiment(main)
