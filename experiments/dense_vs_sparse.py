"""Does sparsity pay at equal compute? Dense, MoE and MoE with a sliding window, on an isoFLOP grid.

python experiments/dense_vs_sparse.py --preset demo
python experiments/dense_vs_sparse.py --preset laptop --dry-run
python experiments/dense_vs_sparse.py --preset gpu --devices 8 --strategy ddp --grid.seeds 5
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from toolkit.scaling import RunResult, Study, study_multipliers, write_report
from toolkit.scaling.cli import conduct, read_study, run_experiment
from toolkit.scaling.laws.isoflop import finite_runs

PRESETS = Path(__file__).parent / "presets"
TITLE = "Dense against sparse at equal compute"
QUESTION = (
    "At the same training FLOPs, and in the same time on this machine, does a sparse decoder predict text better?"
)


def main(arguments: Sequence[str]) -> None:
    """Plan, train what is not trained yet, and write the report."""
    study, dry_run = read_study(arguments, PRESETS, __doc__ or "")
    conduct(study, dry_run, write_study_report)


def write_study_report(study: Study, rows: Sequence[RunResult]) -> Path:
    """Figures and report.md in the study's folder."""
    from toolkit.scaling.figures import plot_expert_load, plot_frontier, plot_isoflop

    folder, finite = study.folder.path, finite_runs(rows)[0]
    multipliers = study_multipliers(finite, "dense")
    figures = [
        plot_isoflop(finite, folder / "isoflop.png"),
        plot_frontier(finite, folder / "frontier.png", multipliers),
    ]
    sparse = [row for row in finite if row.family.startswith("moe")]
    if sparse:
        best = min(sparse, key=lambda row: row.bits_per_byte)
        with np.load(study.folder.run(best.run) / "load.npz") as saved:
            loads = {name: saved[name] for name in saved.files if name != "steps"}
            if len(saved["steps"]) > 1:  # a run shorter than log_every has one record, and no course to draw
                figures.append(plot_expert_load(loads, saved["steps"], folder / "expert_load.png", best.run))
    return write_report(folder, rows, study.description(TITLE, QUESTION), figures=figures)


if __name__ == "__main__":
    run_experiment(main)
