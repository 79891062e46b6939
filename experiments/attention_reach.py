"""How far can each attention pattern look back? Accuracy against distance, at equal FLOPs, beside the masks' own cut.

python experiments/attention_reach.py --preset laptop
python experiments/attention_reach.py --preset laptop --dry-run
python experiments/attention_reach.py --preset laptop --seeds 5 --task.distances '[3, 12, 13, 31]'
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.scaling.cli import run_experiment
from toolkit.scaling.reach.cli import conduct_reach, read_reach
from toolkit.scaling.reach.report import write_reach_report

PRESETS = Path(__file__).parent / "presets" / "reach"
STUDIES = Path("runs") / "reach"


def main(arguments: Sequence[str]) -> None:
    """Plan, train what is not trained yet, and write the report."""
    study, dry_run = read_reach(arguments, PRESETS, __doc__ or "", STUDIES)
    conduct_reach(study, dry_run, write_reach_report)


if __name__ == "__main__":
    run_experiment(main)
