"""The command line of a study of context extension: settings, the plan as a table, the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from toolkit.compute import cost
from toolkit.data import CorpusConfig
from toolkit.parallel import ParallelConfig
from toolkit.scaling.cli import StrictParser, conclude, parse_settings, resolved, study_folder
from toolkit.scaling.extension.evaluation import EvaluationConfig, scored_tokens
from toolkit.scaling.extension.plan import ExtensionConfig, ExtensionModel, PlannedStage
from toolkit.scaling.extension.study import ExtensionStudy
from toolkit.scaling.extension.table import Measurement
from toolkit.scaling.study import DRY_RUN_STEP
from toolkit.training.config import TrainingConfig
from toolkit.training.probe import probe_step_seconds

DEFAULT_PRESET = "laptop"
NOT_RESULTS = ("config", "out", "cache", "threads", "accelerator")
"""Settings that say where and how a study runs; the others determine its results."""

Report = Callable[[ExtensionStudy, Sequence[Measurement]], Path]


def extension_parser(description: str) -> ArgumentParser:
    """The settings of a study of context extension."""
    parser = StrictParser(description=description)
    parser.add_argument("--preset", type=str, default=DEFAULT_PRESET, help="name of a YAML file among the presets")
    parser.add_argument("--config", action="config", help="a YAML file of settings, on top of the preset's")
    parser.add_class_arguments(CorpusConfig, "corpus")
    parser.add_class_arguments(ExtensionModel, "model")
    parser.add_class_arguments(ExtensionConfig, "extension")
    parser.add_class_arguments(EvaluationConfig, "evaluation")
    parser.add_class_arguments(TrainingConfig, "training", skip={"seed"})
    parser.add_argument("--validation_windows", type=int, default=128, help="of the base run, while it trains")
    parser.add_argument("--accelerator", type=str, default="auto", help="auto, cpu or gpu")
    parser.add_argument("--out", type=str, default="", help="the study's folder; by default one of the preset's name")
    parser.add_argument("--cache", type=str, default="runs/corpus", help="folder of tokenised corpora")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and train nothing")
    return parser


def read_extension(
    arguments: Sequence[str], presets: Path, description: str, studies: Path
) -> tuple[ExtensionStudy, bool]:
    """The study that ``arguments`` ask for, and whether only its plan is wanted.

    Args:
        arguments: of the command line.
        presets: folder of ``<preset>.yaml`` files.
        description: of the experiment, for ``--help``.
        studies: the study's folder is ``<studies>/<preset>`` where ``--out`` says no other.

    Raises:
        ValueError: naming the setting that cannot be used and what would be right.
    """
    parser = extension_parser(description)
    settings = parse_settings(parser, ["--preset", DEFAULT_PRESET, *arguments], presets)
    made: Any = parser.instantiate(settings)
    study = ExtensionStudy(
        corpus=made.corpus,
        model=made.model,
        config=made.extension,
        evaluation=made.evaluation,
        training=made.training,
        parallel=ParallelConfig(accelerator=settings.accelerator),
        folder=study_folder(settings, studies),
        cache=Path(settings.cache),
        threads=settings.threads,
        validation_windows=settings.validation_windows,
        settings=resolved(parser, settings, NOT_RESULTS),
    )
    return study, settings.dry_run


def conduct_extension(study: ExtensionStudy, dry_run: bool, report: Report) -> None:
    """Print the plan and, unless ``dry_run``, train and evaluate what is not done yet, and write the report.

    Args:
        study: what to do.
        dry_run: print the plan and leave nothing behind.
        report: writes it and gives its path.
    """
    console = Console(width=None if Console().is_terminal else 140)
    print_plan(study, console)
    if dry_run:
        return
    study.claim_folder()
    with study.folder.alone():
        rows = study.run(lambda line: console.print(line, highlight=False))
    conclude(lambda: report(study, rows), study.folder.path)


def print_plan(study: ExtensionStudy, console: Console) -> None:
    """Every training run's parameters, tokens, FLOPs and time, and what the evaluations add."""
    stages = [stage for base in study.bases for stage in (base, *study.tunings(base))]
    seconds = _step_seconds(study, stages)
    table = Table(title=f"{len(stages)} training runs on {len(study.prepared.train):,} training tokens", expand=False)
    for column in ("run", "params", "context", "steps", "tokens", "FLOPs", "/budget", "time s"):
        table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
    for stage in stages:
        table.add_row(
            stage.name,
            f"{stage.cost.total_parameters:,}",
            f"{stage.training.context:,}",
            f"{stage.training.steps:,}",
            f"{stage.training.steps * stage.training.tokens_per_step:,}",
            f"{stage.flops:.4g}",
            f"{stage.flops / stage.budget:.4f}",
            f"{stage.training.steps * seconds[stage.base]:.0f}" if seconds else "?",
        )
    console.print(table)
    evaluations = 2 * len(study.models) * len(study.bases)
    flops = evaluations * evaluation_flops(study)
    training = sum(stage.flops for stage in stages)
    count, longest = study.blocks.shape
    console.print(
        f"{training:.3g} FLOPs of training, {flops:.3g} of evaluation on {count} stretches of {longest - 1:,} tokens",
        highlight=False,
    )
    if seconds:
        spent = sum(stage.training.steps * seconds[stage.base] for stage in stages)
        console.print(
            f"about {spent / 60:.1f} minutes of training and, at the same FLOPs a second, "
            f"{spent * flops / training / 60:.1f} of evaluation; each context timed for a few throw-away steps, "
            "validation and starting up not counted",
            highlight=False,
        )


def evaluation_flops(study: ExtensionStudy) -> float:
    """Forward FLOPs (``exact``) of one model's evaluation at all lengths."""
    tokens = scored_tokens(study.lengths, study.evaluation)
    model = study.bases[0].model
    return sum(count * cost(model, length).forward_flops["exact"] for length, count in tokens.items())


def _step_seconds(study: ExtensionStudy, stages: Sequence[PlannedStage]) -> dict[bool, float]:
    """Seconds of a step of the base run (True) and of a fine-tune; empty where a CPU would take too long to tell."""
    device = study.parallel.device
    first = {stage.base: stage for stage in reversed(stages)}
    if device == "cpu" and max(stage.step_flops for stage in stages) > DRY_RUN_STEP:
        return {}
    configs = [(stage.model, stage.training) for stage in first.values()]
    return dict(zip(first, probe_step_seconds(configs, "cuda" if device == "gpu" else "cpu", rounds=5), strict=True))
