"""Checks of one run before it is begun: a small model of its family is trained for a moment, the whole is counted.

python -m toolkit.training.check runs/one
python -m toolkit.training.check mine.yaml --trial-steps 200 --effect 0.005 --seeds 5 --gpu-memory 80

The settings are a run's folder (its run.json) or a file of the same form, with any that is given here on top, as
--training.steps 500. Exit code 1 where a check fails, 2 where the
settings cannot be used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from toolkit.training.check.finding import conclude
from toolkit.training.check.run import RunCheck, check_run
from toolkit.training.check.settings import CheckParser, CheckSettings
from toolkit.training.run_settings import changes_of, read_run_settings

USER_ERROR = 2
"""Exit code when the user's settings cannot be used."""


def read_settings(arguments: Sequence[str]) -> RunCheck:
    """What is to be checked, and how.

    Raises:
        ValueError: naming the setting that cannot be used.
    """
    parser = CheckParser("python -m toolkit.training.check", __doc__)
    parser.add_argument("settings", type=Path, help="a run's folder, or a YAML or JSON file of a run's settings")
    CheckSettings.add_to(parser)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each kind that will be compared")
    parser.add_argument("--small-dim", type=int, default=128, help="width of the model that is tried, at most")
    parser.add_argument("--small-layers", type=int, help="its layers; every kind of them once by default")
    parser.add_argument("--small-batch", type=int, help="sequences in a step of a trial; the run's by default")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="of tokens")
    options, others = parser.parse_known_args(list(arguments))
    run, settings = read_run_settings(options.settings, changes_of(others)), CheckSettings.of(options)
    sizes = {name: getattr(options, name) for name in ("small_dim", "small_layers", "small_batch", "seeds", "cache")}
    return RunCheck(run, settings, **sizes)


def main(arguments: Sequence[str]) -> None:
    """Print what is tried and a line for every check; exit with 1 where one fails."""
    check = read_settings(arguments)
    print(check.describe(), flush=True)
    conclude(check_run(check))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USER_ERROR)
