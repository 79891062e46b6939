"""Which way of routing pays at equal compute? Routers and balance methods side by side, several seeds each.

python experiments/routing_ablation.py --preset demo
python experiments/routing_ablation.py --preset demo --dry-run
python experiments/routing_ablation.py --preset laptop --grid.families '[dense, aux, bias-sigmoid]' --grid.seeds 9
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.scaling.cli import conduct, read_study, run_experiment
from toolkit.scaling.routing.arms import RoutingArms
from toolkit.scaling.routing.report import write_study_report

PRESETS = Path(__file__).parent / "presets" / "routing"
STUDIES = Path("runs") / "routing"


def main(arguments: Sequence[str]) -> None:
    """Plan, train what is not trained yet, and write the report."""
    study, dry_run = read_study(arguments, PRESETS, __doc__ or "", RoutingArms, STUDIES)
    conduct(study, dry_run, write_study_report)


if __name__ == "__main__":
    run_experiment(main)
