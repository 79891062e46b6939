"""Which attention pays at equal compute? Full, sliding, sliding with globals, interleaved, native sparse, by context.

python experiments/attention_scaling.py --preset demo
python experiments/attention_scaling.py --preset demo --contexts '[128, 1024]' --dry-run
python experiments/attention_scaling.py --preset gpu --contexts '[2048]' --grid.seeds 2
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.scaling.attention.arms import AttentionArms
from toolkit.scaling.attention.contexts import conduct_contexts, read_context_studies
from toolkit.scaling.attention.report import write_studies_report
from toolkit.scaling.cli import run_experiment

PRESETS = Path(__file__).parent / "presets" / "attention"
STUDIES = Path("runs") / "attention"


def main(arguments: Sequence[str]) -> None:
    """Plan every context, train what is not trained yet, and write the report."""
    studies, dry_run = read_context_studies(arguments, PRESETS, __doc__ or "", AttentionArms, STUDIES)
    conduct_contexts(studies, dry_run, write_studies_report)


if __name__ == "__main__":
    run_experiment(main)
