"""The command line of a study of reach: settings, the plan as a table, the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from toolkit.scaling.cli import StrictParser, conclude, parse_settings, resolved, study_folder
from toolkit.scaling.reach.arms import ReachArm, ReachModel, arm_reach
from toolkit.scaling.reach.study import ReachStudy, ReachTask
from toolkit.scaling.reach.table import ReachRow
from toolkit.training.config import TrainingConfig
from toolkit.training.probe import probe_step_seconds

DEFAULT_PRESET = "laptop"
NOT_RESULTS = ("config", "out", "workers")
"""Settings that say where and how a study runs; the others determine its results."""

NOT_SETTINGS = ("steps", "context", "seed", "precision", "evaluations", "validation_block", "checkpoint_minutes")
"""Fields of a run's training that the study sets, or that training on a task has no use for."""


def reach_parser(description: str) -> ArgumentParser:
    """The settings of a study of reach."""
    parser = StrictParser(description=description)
    parser.add_argument("--preset", type=str, default=DEFAULT_PRESET, help="name of a YAML file among the presets")
    parser.add_argument("--config", action="config", help="a YAML file of settings, on top of the preset's")
    parser.add_argument("--arms", type=list[ReachArm], help="the patterns to compare")
    parser.add_class_arguments(ReachModel, "model")
    parser.add_class_arguments(ReachTask, "task")
    parser.add_class_arguments(TrainingConfig, "training", skip=set(NOT_SETTINGS), instantiate=False)
    parser.add_argument("--flops", type=float, default=1e12, help="training FLOPs of every run")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each pattern")
    parser.add_argument("--out", type=str, default="", help="the study's folder; by default one of the preset's name")
    parser.add_argument("--workers", type=int, default=2, help="runs at once, a CPU thread each")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and train nothing")
    return parser


def read_reach(arguments: Sequence[str], presets: Path, description: str, studies: Path) -> tuple[ReachStudy, bool]:
    """The study that ``arguments`` ask for, and whether only its plan is wanted.

    Args:
        arguments: of the command line.
        presets: folder of ``<preset>.yaml`` files.
        description: of the experiment, for ``--help``.
        studies: the study's folder is ``<studies>/<preset>`` where ``--out`` says no other.

    Raises:
        ValueError: naming the setting that cannot be used and what would be right.
    """
    parser = reach_parser(description)
    settings = parse_settings(parser, ["--preset", DEFAULT_PRESET, *arguments], presets)
    made: Any = parser.instantiate(settings)
    study = ReachStudy(
        arms=tuple(made.arms),
        model=made.model,
        task=made.task,
        training=TrainingConfig(steps=1, context=made.task.length, **vars(settings.training)),
        flops=settings.flops,
        seeds=settings.seeds,
        folder=study_folder(settings, studies),
        workers=settings.workers,
        settings=resolved(parser, settings, NOT_RESULTS),
    )
    return study, settings.dry_run


def conduct_reach(study: ReachStudy, dry_run: bool, report: Callable[[ReachStudy, Sequence[ReachRow]], Path]) -> None:
    """Print the plan and, unless ``dry_run``, train and ask what is not done yet, and write the report.

    Args:
        study: what to do.
        dry_run: print the plan and leave nothing behind.
        report: writes it and gives its path.
    """
    console = Console(width=None if Console().is_terminal else 140)
    print_plan(study, console)
    if dry_run:
        return
    study.folder.claim(study.settings)
    with study.folder.alone():
        rows = study.run(lambda line: console.print(line, highlight=False))
    conclude(lambda: report(study, rows), study.folder.path / "runs")


def print_plan(study: ReachStudy, console: Console) -> None:
    """Every arm's steps, FLOPs, time and reach."""
    runs = study.runs[: len(study.arms)]
    seconds = probe_step_seconds([(run.model, run.training) for run in runs], rounds=3)
    table = Table(title=f"{len(study.runs)} runs: {len(runs)} patterns, {study.seeds} seeds each", expand=False)
    for column in ("pattern", "steps", "FLOPs", "/budget", "ms a step", "time s", "cut", "cut whatever is chosen"):
        table.add_column(column, justify="left" if column == "pattern" else "right", no_wrap=True)
    for run, step in zip(runs, seconds, strict=True):
        reached = arm_reach(study.model, run.arm, study.task.length)
        flops = study.spent(run)
        table.add_row(
            run.arm.name,
            f"{run.training.steps:,}",
            f"{flops:.4g}",
            f"{flops / study.flops:.4f}",
            f"{1e3 * step:.1f}",
            f"{step * run.training.steps:.0f}",
            str(reached.cut),
            str(reached.certain_cut),
        )
    console.print(table)
    total = study.seeds * sum(step * run.training.steps for run, step in zip(runs, seconds, strict=True))
    console.print(
        f"about {total / study.workers / 60:.1f} minutes with {study.workers} at once on as many free cores; each "
        "model timed for a few throw-away steps, starting up and questions not counted",
        highlight=False,
    )
