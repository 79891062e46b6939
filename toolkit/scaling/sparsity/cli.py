"""The command line of the study of sparsity: settings of grid, laws and prediction; its stages one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from toolkit.parallel import is_main_process
from toolkit.scaling.claims import number
from toolkit.scaling.cli import conclude, make_study, parse_settings, study_console, study_parser
from toolkit.scaling.plan import ModelShape
from toolkit.scaling.plan_table import print_plan
from toolkit.scaling.results import RunResult
from toolkit.scaling.sparsity.prediction import NextBudget, Tested
from toolkit.scaling.sparsity.search import FoundRate
from toolkit.scaling.sparsity.study import Laws, LawSettings, SparsityStudy


@dataclass(frozen=True)
class Findings:
    """All that a study found, for its report.

    Attributes:
        study: with the rates that it used.
        rows: the grid's.
        searched: rows of the search for rates.
        rates: what that found, by family.
        laws: of the grid; None where none could be fitted.
        no_laws: why, where there are none.
        tests: predictions and what was measured.
        next_rows: of the runs that tested them.
    """

    study: SparsityStudy
    rows: Sequence[RunResult]
    searched: Sequence[RunResult]
    rates: dict[str, FoundRate]
    laws: Laws | None
    no_laws: str
    tests: Sequence[Tested]
    next_rows: Sequence[RunResult]


def read_sparsity(
    arguments: Sequence[str], presets: Path, description: str, studies: Path
) -> tuple[SparsityStudy, bool]:
    """The study that ``arguments`` ask for, and whether only its plan is wanted.

    Args:
        arguments: of the command line.
        presets: folder of ``<preset>.yaml`` files.
        description: of the experiment, for ``--help``.
        studies: the study's folder is ``<studies>/<preset>`` where ``--out`` says no other.

    Raises:
        ValueError: naming the setting that cannot be used and what would be right.
    """
    parser = study_parser(description, ModelShape)
    parser.add_class_arguments(LawSettings, "laws")
    parser.add_argument("--next_budget", type=NextBudget | None, default=None, help="what is predicted, then trained")
    settings = parse_settings(parser, arguments, presets)
    made: Any = parser.instantiate(settings)
    study = SparsityStudy(make_study(parser, settings, studies), made.laws, made.next_budget)
    return study, settings.dry_run


def conduct_sparsity(study: SparsityStudy, dry_run: bool, report: Callable[[Findings], Path]) -> None:
    """Print the plan and, unless ``dry_run``, do what is not done yet of every stage and write the report.

    Args:
        study: what to do.
        dry_run: print the plan and leave nothing behind.
        report: writes it and gives its path; called on the main process.
    """
    console = study_console()
    _announce(study, console, dry_run)
    if dry_run:
        return
    with study.base.at_work():
        found = _stages(study, lambda line: console.print(line, highlight=False))
    conclude(lambda: report(found), study.base.folder.path / "runs")


def _announce(study: SparsityStudy, console: Console, dry_run: bool) -> None:
    base, runs = study.base, [*study.search_runs, *study.base.runs]
    console.print(f"Reading the corpus, and timing a few throw-away steps of {len(runs)} runs' models ...")
    study.require_steps()
    if dry_run:
        print_plan(base, console, base.trial_seconds(runs), runs)
    else:
        base.claim_folder()
        with base.folder.alone() if is_main_process() else nullcontext():
            print_plan(base, console, base.step_seconds(runs), runs)
    following = study.next_budget
    if following is not None:
        count = len(study.next_families) * following.seeds
        console.print(
            f"then {count} runs of {number(following.flops)} FLOPs ({number(count * following.flops)} in all) at "
            f"widths that the grid's laws choose between {study.laws.dims[0]} and {study.laws.dims[1]}",
            highlight=False,
        )


def _stages(study: SparsityStudy, say: Callable[[str], None]) -> Findings:
    study, rates, searched = study.search()
    for found in rates.values():
        edge = " (at the edge of those tried)" if found.at_edge else ""
        say(f"learning rate of {found.family}: {found.rate:.3g}{edge}")
    rows = study.base.run()
    laws, no_laws = _laws(study, rows) if is_main_process() else (None, "")
    predictions = study.predictions(laws)
    tests, next_rows = study.test(predictions, say)
    return Findings(study, rows, searched, rates, laws, no_laws, tests, next_rows)


def _laws(study: SparsityStudy, rows: Sequence[RunResult]) -> tuple[Laws | None, str]:
    """The laws of the grid, or why there are none: a study of few runs still has its report."""
    try:
        return study.fit(rows), ""
    except ValueError as reason:
        return None, str(reason)
