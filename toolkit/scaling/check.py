"""Checks of a study before it is run: its smallest model is trained for a moment, its largest is counted.

python -m toolkit.scaling.check experiments/presets/laptop.yaml
python -m toolkit.scaling.check experiments/presets/gpu.yaml --trial-steps 200 --effect 0.005 --grid.seeds 5

The settings are those of ``experiments/dense_vs_sparse.py``. Exit code 1 where a check fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch

from toolkit.checks import require, require_positive
from toolkit.models import Decoder
from toolkit.scaling.cli import run_experiment
from toolkit.scaling.sparsity.cli import read_sparsity
from toolkit.scaling.study import Study
from toolkit.training.check import (
    Finding,
    Trial,
    check_gradients,
    check_loading,
    check_loss,
    check_masks,
    check_memory,
    check_tokens,
    check_validation,
    run_trial,
)

MASKED = 64
"""Tokens of the check of masks, at most."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def read_settings(arguments: Sequence[str]) -> tuple[Study, argparse.Namespace]:
    """The study of a YAML file, and the checks' own settings.

    Raises:
        ValueError: naming the setting that cannot be used.
    """
    description = (__doc__ or "").splitlines()[0]
    parser = _Parser(prog="python -m toolkit.scaling.check", description=description, allow_abbrev=False)
    parser.add_argument("settings", type=Path, help="a study's YAML file")
    parser.add_argument("--trial-steps", type=int, default=100, help="steps of each trial")
    parser.add_argument("--trials", type=int, default=3, help="trials that differ in the seed alone")
    parser.add_argument("--effect", type=float, default=0.01, help="bits per byte that a difference is expected to be")
    parser.add_argument("--gpu-memory", type=float, default=80.0, help="of one device, in GB (1e9 bytes)")
    own, rest = parser.parse_known_args(list(arguments))
    require(own.settings.is_file(), "settings", str(own.settings), "a YAML file of a study's settings")
    require(own.trials > 1, "trials", own.trials, "2 or more: one tells nothing of the noise")
    require_positive(trial_steps=own.trial_steps, effect=own.effect, gpu_memory=own.gpu_memory)
    given = ["--preset", own.settings.stem, *rest]
    study, _ = read_sparsity(given, own.settings.parent, description, Path("runs"))
    return study.base, own


def check_study(study: Study, own: argparse.Namespace) -> list[Finding]:
    """Every check: of trials of the smallest model, of every family's masks, of the largest run's sizes."""
    runs = sorted(study.runs, key=lambda run: run.cost.total_parameters)
    small, large = runs[0], max(study.runs, key=lambda run: run.flops["exact"])
    trials = [_trial(study, own, seed) for seed in range(own.trials)]
    findings = [check(trials[0]) for check in (check_loss, check_gradients, check_loading)]
    findings.append(check_validation([each.bits_per_byte for each in trials], own.effect, study.grid.seeds))
    families = {run.family: run for run in reversed(runs)}
    for family, run in families.items():
        found = check_masks(Decoder(run.model), min(MASKED, small.training.context))
        findings.append(replace(found, check=f"masks of {family}"))
    findings.append(check_memory(large.model, large.training, own.gpu_memory * 1e9, study.parallel))
    return [*findings, check_tokens(large.model, large.training)]


def _trial(study: Study, own: argparse.Namespace, seed: int) -> Trial:
    small = min(study.runs, key=lambda run: run.cost.total_parameters)
    torch.manual_seed(seed)
    decoder = Decoder(small.model).to("cuda" if study.parallel.device == "gpu" else "cpu")
    training = replace(small.training, seed=seed)
    count = study.validation_windows
    return run_trial(decoder, training, study.prepared, own.trial_steps, validation_count=count)


def main(arguments: Sequence[str]) -> None:
    """Print a line for every check; exit with 1 where one fails."""
    study, own = read_settings(arguments)
    findings = check_study(study, own)
    for finding in findings:
        print(finding)
    if any(finding.status == "fail" for finding in findings):
        sys.exit(1)


if __name__ == "__main__":
    run_experiment(main)
