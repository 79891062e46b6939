"""Does sparsity pay at equal compute? Dense, MoE and MoE with a sliding window, on an isoFLOP grid.

python experiments/dense_vs_sparse.py --preset demo
python experiments/dense_vs_sparse.py --preset laptop --dry-run
python experiments/dense_vs_sparse.py --preset gpu --devices 8 --strategy ddp --grid.seeds 5
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.scaling.cli import run_experiment
from toolkit.scaling.sparsity.cli import conduct_sparsity, read_sparsity
from toolkit.scaling.sparsity.report import write_sparsity_report

PRESETS = Path(__file__).parent / "presets"
STUDIES = Path("runs")


def main(arguments: Sequence[str]) -> None:
    """Plan, train what is not trained yet, and write the report."""
    study, dry_run = read_sparsity(arguments, PRESETS, __doc__ or "", STUDIES)
    conduct_sparsity(study, dry_run, write_sparsity_report)


if __name__ == "__main__":
    run_experiment(main)
