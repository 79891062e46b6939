"""A study's command line: a preset, typed overrides of every field, and errors in one line."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from toolkit.checks import require_choice
from toolkit.data import CorpusConfig
from toolkit.parallel import ParallelConfig, is_main_process, leave_process_group
from toolkit.scaling.folder import StudyFolder
from toolkit.scaling.launch import SlurmSettings
from toolkit.scaling.plan import Grid, ModelShape, Shape
from toolkit.scaling.plan_table import print_plan
from toolkit.scaling.results import RunResult
from toolkit.scaling.study import Study
from toolkit.training.config import TrainingConfig
from toolkit.training.termination import AskedToEnd, ending_on_term

NOT_RESULTS = (
    "config",
    "out",
    "other_code",
    "cache",
    "launcher",
    "slurm",
    "workers",
    "threads",
    "devices",
    "num_nodes",
    "accelerator",
    "strategy",
    "parallel",
)
"""Settings that say where and how a study runs; the others, and what they come to, determine its results."""

LAUNCH = ("devices", "num_nodes", "accelerator", "strategy")
"""Settings of a :class:`ParallelConfig` that stand by themselves; the others are ``parallel``'s."""

PIPED_WIDTH = 200
"""Columns of the printed plan where the output is no terminal."""

ANY_STEPS = 10**12
"""Steps before the plan sets a run's own: more than any warmup in steps."""

USER_ERROR = 2
"""Exit code when the user's settings cannot be used."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

UNKNOWN = (
    r"unrecognized arguments: --([\w.]+)",
    r"Group '([\w.]+)' does not accept option '([\w.]+)'",
    r"Option '([\w.]+)' is not accepted",
    r"[Kk]ey ['\"]?([\w.]+)",
)
"""How jsonargparse names a setting it refuses, on the command line and in YAML."""


class StrictParser(ArgumentParser):
    """Refuses in one line, with the nearest name that exists."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a ``ValueError`` of one line."""
        found = next((match for pattern in UNKNOWN if (match := re.search(pattern, message))), None)
        hint = ""
        if found:
            name, known = ".".join(found.groups()), [action.dest for action in self._actions]
            near = difflib.get_close_matches(name, known, n=1)
            hint = "" if name in known else f"; did you mean {near[0]}?" if near else "; --help lists every setting"
        raise ValueError(" ".join(message.split()) + hint)


def study_parser(description: str, shape: type[Shape] = ModelShape) -> ArgumentParser:
    """The settings of any study: corpus, model, grid, training, devices and where things go.

    Args:
        description: of the experiment, for ``--help``.
        shape: the dataclass whose fields are the settings of ``model``.
    """
    parser = StrictParser(description=description)
    parser.add_argument("--preset", type=str, default="demo", help="name of a YAML file among the presets")
    parser.add_argument("--config", action="config", help="a YAML file of settings, on top of the preset's")
    parser.add_class_arguments(CorpusConfig, "corpus")
    parser.add_class_arguments(shape, "model")
    parser.add_class_arguments(Grid, "grid")
    planned = {"steps", "learning_rate", "seed"}
    parser.add_class_arguments(TrainingConfig, "training", skip=planned, instantiate=False)
    sizes = {field.name for field in fields(ParallelConfig)} - set(LAUNCH)
    parser.add_class_arguments(ParallelConfig, skip=sizes, instantiate=False)
    parser.add_class_arguments(ParallelConfig, "parallel", skip=set(LAUNCH), instantiate=False)
    parser.add_argument("--validation_windows", type=int, default=256, help="the same ones for every run")
    parser.add_argument("--out", type=str, default="", help="the study's folder; by default one of the preset's name")
    parser.add_argument("--cache", type=str, default="runs/corpus", help="folder of tokenised corpora")
    parser.add_argument("--workers", type=int, default=0, help="runs at once; 0: one for every `threads` of the CPU")
    parser.add_argument("--launcher", type=str, default="local", help="where runs are trained: local, or slurm")
    parser.add_class_arguments(SlurmSettings, "slurm")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("--other_code", type=bool, default=False, help="go on with runs of another version of the code")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and train nothing")
    return parser


def read_study(
    arguments: Sequence[str],
    presets: Path,
    description: str,
    shape: type[Shape] = ModelShape,
    studies: Path = Path("runs"),
) -> tuple[Study, bool]:
    """The study that ``arguments`` ask for, and whether only its plan is wanted.

    Args:
        arguments: of the command line.
        presets: folder of ``<preset>.yaml`` files.
        description: of the experiment, for ``--help``.
        shape: what is compared: the dataclass that ``model`` sets.
        studies: the study's folder is ``<studies>/<preset>`` where ``--out`` says no other.

    Raises:
        ValueError: naming the setting that cannot be used and what would be right.
    """
    parser = study_parser(description, shape)
    settings = parse_settings(parser, arguments, presets)
    return make_study(parser, settings, studies), settings.dry_run


def parse_settings(parser: ArgumentParser, arguments: Sequence[str], presets: Path) -> Namespace:
    """The preset's settings with those of ``arguments`` on top.

    Raises:
        ValueError: naming the setting that cannot be used and what would be right.
    """
    preset = _preset(arguments)
    require_choice("preset", preset, tuple(sorted(path.stem for path in presets.glob("*.yaml"))))
    settings: Namespace = parser.parse_args(["--config", str(presets / f"{preset}.yaml"), *arguments])
    return settings


def conduct(study: Study, dry_run: bool, report: Callable[[Study, Sequence[RunResult]], Path]) -> None:
    """Print the plan and, unless ``dry_run``, train what is not trained yet and write the report.

    Args:
        study: what to do.
        dry_run: print the plan and leave nothing behind.
        report: writes it and gives its path; called with the finished rows, on the main process.
    """
    announce(study, dry_run)
    if dry_run:
        return
    with study.at_work():
        rows = study.run()
    conclude(lambda: report(study, rows), study.folder.path / "runs")


def announce(study: Study, dry_run: bool) -> None:
    """Time the models' steps and print the plan; the folder is made the study's unless ``dry_run``."""
    console = study_console()
    console.print(f"Reading the corpus, and timing a few throw-away steps of {len(study.runs)} runs' models ...")
    if dry_run:
        print_plan(study, console, study.trial_seconds())
        return
    study.claim_folder()
    with study.folder.alone() if is_main_process() else nullcontext():
        print_plan(study, console, study.seconds)


def conclude(report: Callable[[], Path], curves: Path) -> None:
    """Write the report, on the main process, and say where it is and how to look at the ``curves`` in that folder."""
    if is_main_process():
        console = study_console()
        console.print(f"\nReport: {report()}", highlight=False)
        console.print(f"Curves: tensorboard --logdir {curves}", highlight=False)


def study_console() -> Console:
    """Where a study prints: nowhere but on the main process, and wide enough for a plan's table."""
    return Console(quiet=not is_main_process(), width=None if Console().is_terminal else PIPED_WIDTH)


def run_experiment(main: Callable[[Sequence[str]], None]) -> None:
    """Call ``main`` with the command line; end with one line and exit code 2 if its settings are refused.

    What fails once training has begun is no setting's fault, comes as a ``RuntimeError`` that names the
    run, and keeps its traceback. On SIGTERM the exit code is 75
    (:class:`toolkit.training.termination.AskedToEnd`).
    """
    with ending_on_term():
        try:
            main(sys.argv[1:])
        except AskedToEnd as left:
            print(left, file=sys.stderr)
            raise
        except (ValueError, ImportError, OSError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(USER_ERROR)
        except KeyboardInterrupt:
            print("stopped; the same command goes on with the next unfinished run", file=sys.stderr)
            sys.exit(INTERRUPTED)
        finally:
            leave_process_group()


def _preset(arguments: Sequence[str]) -> str:
    first = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    first.add_argument("--preset", type=str, default="demo")
    try:
        return str(first.parse_known_args(list(arguments))[0].preset)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None


def make_study(parser: ArgumentParser, settings: Namespace, studies: Path) -> Study:
    """The study of these settings; its folder is ``<studies>/<preset>`` where they say no other."""
    made: Any = parser.instantiate(settings)
    return Study(
        corpus=made.corpus,
        shape=made.model,
        grid=made.grid,
        training=TrainingConfig(steps=ANY_STEPS, **vars(settings.training)),
        parallel=ParallelConfig(**{name: settings[name] for name in LAUNCH}, **vars(settings.parallel)),
        folder=study_folder(settings, studies),
        cache=Path(settings.cache),
        workers=settings.workers,
        threads=settings.threads,
        validation_windows=settings.validation_windows,
        settings=resolved(parser, settings, NOT_RESULTS),
        other_code=settings.other_code,
        launcher=settings.launcher,
        slurm=made.slurm,
    )


def study_folder(settings: Namespace, studies: Path) -> StudyFolder:
    """``--out``, or the preset's own among ``studies``."""
    return StudyFolder(Path(settings.out) if settings.out else studies / settings.preset)


def resolved(parser: ArgumentParser, settings: Namespace, not_results: Sequence[str]) -> str:
    """The settings that determine a study's results, as YAML: all but ``not_results``, the preset and --dry-run."""
    results = settings.clone()
    for name in (*not_results, "dry_run", "preset"):
        results.pop(name, None)
    text: str = parser.dump(results, skip_validation=True)
    return text
