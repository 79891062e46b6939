"""One run in one folder, by its settings' file; it goes on wherever it was ended.

    python experiments/train.py experiments/presets/run/moe.yaml --out runs/one
    python experiments/train.py experiments/presets/run/moe.yaml --out runs/two --training.steps 500
    torchrun --nproc-per-node 2 experiments/train.py experiments/presets/run/moe.yaml --out runs/3 --parallel.shard 2

The file is what ``python -m toolkit.training.check`` reads; every setting in it can be given on the command line too.
Ends with 0 when it is done, and with 75 when it was asked to end early (SIGTERM) and has saved: the same command then
goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from toolkit.checks import require
from toolkit.parallel import is_main_process
from toolkit.scaling.cli import run_experiment
from toolkit.training import fit
from toolkit.training.run_settings import RunSettings, changes_of, read_run_settings


def conduct(run: RunSettings, out: Path, cache: Path) -> None:
    """Train, and say where the run ended."""
    fitted = fit(
        run.model,
        run.training,
        run.corpus(cache),
        out,
        run.flops,
        parallel=run.parallel,
        validation_count=run.validation_windows,
    )
    if is_main_process():
        print(f"{fitted.steps} steps, {fitted.bits_per_byte:.3f} bits per byte: {out}")


def main(arguments: Sequence[str]) -> None:
    """Read the settings, and train.

    Raises:
        ValueError: if one is refused.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, help="a YAML or JSON file of a run's settings, or another run's folder")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="of tokens")
    options, others = parser.parse_known_args(arguments)
    run = read_run_settings(options.settings, changes_of(others))
    require(not run.beginning, "initial", "weights", "none: a file of settings does not hold what a run began with")
    require(not run.mixture, "mixture", "a task's rows", "none: a file of settings does not hold the task")
    run.parallel.check_launch()
    conduct(run, options.out, options.cache)


if __name__ == "__main__":
    run_experiment(main)
