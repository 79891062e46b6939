"""How to read longer than trained? Every RoPE scaling at 1 to 16 times the length, as is and after the same fine-tune.

python experiments/context_extension.py --preset laptop
python experiments/context_extension.py --preset laptop --dry-run
python experiments/context_extension.py --preset laptop --extension.methods '[none, yarn]' --out runs/yarn
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.scaling.cli import run_experiment
from toolkit.scaling.extension.cli import conduct_extension, read_extension
from toolkit.scaling.extension.report import write_extension_report

PRESETS = Path(__file__).parent / "presets" / "extension"
STUDIES = Path("runs") / "extension"


def main(arguments: Sequence[str]) -> None:
    """Plan, train and evaluate what is not done yet, and write the report."""
    study, dry_run = read_extension(arguments, PRESETS, __doc__ or "", STUDIES)
    conduct_extension(study, dry_run, write_extension_report)


if __name__ == "__main__":
    run_experiment(main)
