"""The report of a study of attention: every context at equal FLOPs and at equal seconds, and what it cannot claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from toolkit.checks import require
from toolkit.files import write_atomically
from toolkit.scaling.attention.arms import FULL, AttentionArms
from toolkit.scaling.attention.contexts import ContextStudies
from toolkit.scaling.attention.equal_seconds import loss_in_time
from toolkit.scaling.attention.tables import (
    ContextResult,
    arms_table,
    contexts_table,
    side_by_side_table,
    sizes_table,
)
from toolkit.scaling.claims import join_words, number, run_limits
from toolkit.scaling.comparison import ArmResult, compare, findings
from toolkit.scaling.document import StudyDescription, bullets, figure_section, runs_section, study_section
from toolkit.scaling.figures import ReportFigure
from toolkit.scaling.laws.isoflop import finite_runs
from toolkit.scaling.results import RunResult
from toolkit.scaling.study_description import describe_study

TITLE = "Attention at equal compute, by context"
QUESTION = (
    "At the same training FLOPs, and in the same time on this machine, which attention predicts text better at each "
    "context length, if what it saves is spent on more tokens or on a larger model?"
)

RowsByContext = Mapping[int, Sequence[RunResult]]


def write_studies_report(studies: ContextStudies, rows: RowsByContext) -> Path:
    """Draw the figures and write report.md and report.html into the folder that holds the studies.

    Raises:
        ValueError: no run ended with a finite loss.
    """
    shapes = {}
    for context, study in studies.by_context.items():
        assert isinstance(study.shape, AttentionArms)
        shapes[context] = study.shape
    vocab_size = next(iter(studies.by_context.values())).prepared.tokenizer.vocab_size
    return write_attention_report(studies.folder, rows, shapes, describe(studies), vocab_size)


def describe(studies: ContextStudies) -> StudyDescription:
    """How the studies were made, in the words of the longest context's and what the others have otherwise."""
    each = {context: describe_study(study, TITLE, QUESTION) for context, study in studies.by_context.items()}
    longest = max(each)
    study, said = studies.by_context[longest], each[longest]
    sources = {description.seconds_source for description in each.values()}
    by_context = "; ".join(f"at context {context}: {each[context].seconds_source}" for context in each)
    return replace(
        said,
        baseline=FULL,
        config=f"# of context {longest}; others differ in training.context, training.batch_size and "
        f"validation_windows alone\n{said.config}",
        seconds_source=said.seconds_source if len(sources) == 1 else by_context,
        conventions=(
            *said.conventions,
            "Validation of a shorter context cuts these very windows into pieces: every context is scored on the same "
            f"{study.validation_windows * longest:,} tokens, each given what precedes it in its piece and no more: "
            "what a longer context adds is in its losses.",
            f"A step is {study.training.tokens_per_step:,} tokens at every context: the longer, the fewer sequences.",
        ),
        planned_runs=tuple(_labelled(context, run) for context, made in each.items() for run in made.planned_runs),
    )


def write_attention_report(
    folder: Path, rows: RowsByContext, shapes: Mapping[int, AttentionArms], study: StudyDescription, vocab_size: int
) -> Path:
    """Write ``report.md``, the same as ``report.html``, and the figures into ``folder``; the Markdown's path.

    Args:
        folder: of the studies; made if absent.
        rows: the runs that ended, diverged ones included, by context.
        shapes: what was compared, by context.
        study: how.
        vocab_size: of the tokenizer.

    Raises:
        ValueError: no run ended with a finite loss.
    """
    from toolkit.scaling.page.page import write_page

    named = {
        context: [replace(row, run=_labelled(context, row.run)) for row in of] for context, of in sorted(rows.items())
    }
    every = [row for of in named.values() for row in of]
    finite, diverged = finite_runs(every)
    require(bool(finite), "rows", f"{len(every)} runs", "at least one finished run with a finite loss")
    families = next(iter(shapes.values())).families
    cells = sorted({(row.budget, row.dim) for row in finite if row.family == FULL}) or sorted(
        {(row.budget, row.dim) for row in finite}
    )
    sections, figures = [f"# {study.title}", f"**Question.** {study.question}"], []
    for budget, dim in cells:
        results = [_result(context, budget, dim, of, families) for context, of in named.items()]
        results = [result for result in results if result.arms]
        place = f"{number(budget)} FLOPs, dim {dim}"
        sections += [f"## At {place}", _reading(budget), contexts_table(results, families)]
        sections += [part for result in results for part in _context_section(result, place)]
        figures += _figures(results, shapes, folder / f"contexts-dim{dim}-flops{number(budget)}.png")
    figures = [figure.backed(command=study.command) for figure in figures]
    sections += figure_section(figures, folder)
    sections += [
        "## The arms",
        "Depth and everything that is no attention are the same in all. `-tokens` has the widths of `full`, `-size` "
        "those that bring a token to the FLOPs of `full` at its context.",
        arms_table(next(iter(shapes.values())).arms),
        *_sizes(shapes, sorted({dim for _, dim in cells}), vocab_size),
        "## What this cannot claim",
        bullets([*run_limits(every, diverged, study.planned_runs), *_limits(finite)]),
        *study_section(study),
    ]
    for context, of in named.items():
        sections += runs_section(of, f"context{context}/results.csv", f"Every run at context {context:,}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.md"
    write_atomically(path, "\n\n".join(sections) + "\n")
    write_page(path, figures, path.with_suffix(".html"), study.title)
    return path


def _labelled(context: int, run: str) -> str:
    return f"context{context}/{run}"


def _result(context: int, budget: float, dim: int, rows: Sequence[RunResult], families: Sequence[str]) -> ContextResult:
    """What one context's runs with finite losses reached at one budget and width."""
    finite = [row for row in finite_runs(rows)[0] if row.dim == dim]
    arms = tuple(compare([row for row in finite if row.budget == budget], FULL, {}, families))
    seconds = next((arm.seconds for arm in arms if arm.family == FULL), math.nan)
    timed = {}
    if not math.isnan(seconds):
        timed = {arm.family: loss_in_time([row for row in finite if row.family == arm.family], seconds) for arm in arms}
    return ContextResult(context, budget, arms, seconds, timed)


def _reading(budget: float) -> str:
    """How the table of contexts is read."""
    return (
        f"Bits per byte less that of `{FULL}`, whose own are given, by context: on the left every model spent "
        f"{number(budget)} FLOPs; on the right each had the time that `{FULL}` needs for them at that context. In "
        "brackets half the width of a 95% interval over seeds (Student's t); differences are taken seed by seed, of "
        "runs that see the same text in the same order; less is better. \N{DAGGER}: the time lies outside that of the "
        "family's runs, and its loss is extrapolated and not judged."
    )


def _context_section(result: ContextResult, place: str) -> list[str]:
    """One context: what its differences support, and its table."""
    title = f"### Context {result.context:,}, {place}"
    sections = [title, "**At equal FLOPs.**", bullets(findings(result.arms, FULL))]
    timed = _timed_arms(result)
    if timed:
        lines = [*findings(timed, FULL), *_not_judged(result)]
        sections += [f"**At equal seconds**, {result.seconds:.1f} s of steps.", bullets(lines)]
    return [*sections, side_by_side_table(result)]


def _timed_arms(result: ContextResult) -> list[ArmResult]:
    """The arms with what they reach in equal time for their losses; without those whose runs do not span it."""
    full = result.timed.get(FULL)
    if full is None:
        return []
    return [
        replace(arm, loss=mine.mean, difference=None if arm.family == FULL else mine.less(full))
        for arm in result.arms
        if (mine := result.timed[arm.family]).by_seed and not mine.extrapolated
    ]


def _not_judged(result: ContextResult) -> list[str]:
    """Which arms are not among the findings at equal seconds."""
    outside = [f"`{family}`" for family, mine in result.timed.items() if mine.extrapolated]
    one = [f"`{family}`" for family, mine in result.timed.items() if not mine.by_seed]
    lines = []
    if outside:
        lines.append(f"Not judged, as all their runs took longer, or less long, than that: {join_words(outside)}.")
    if one:
        lines.append(f"Unknown, with runs of one budget: {join_words(one)}.")
    return lines


def _figures(results: Sequence[ContextResult], shapes: Mapping[int, AttentionArms], path: Path) -> list[ReportFigure]:
    from toolkit.scaling.attention.figures import plot_contexts

    arms = [arm.name for arm in next(iter(shapes.values())).arms]
    return [plot_contexts(results, arms, path)] if results else []


def _sizes(shapes: Mapping[int, AttentionArms], dims: Sequence[int], vocab_size: int) -> list[str]:
    """The sizes of every family, a table for each width of full attention."""
    sections = []
    for dim in dims:
        sections += [
            f"FLOPs a token / that of `{FULL}` at dim {dim} and, in brackets, (width, hidden width), by context:",
            sizes_table(shapes, dim, vocab_size),
        ]
    return sections


def _limits(rows: Sequence[RunResult]) -> list[str]:
    """What no such study can claim, whatever its numbers."""
    steps, tokens, parameters = (max(getattr(row, name) for row in rows) for name in ("steps", "tokens", "parameters"))
    return [
        f"At most {steps:,} steps, {tokens:,} tokens and {parameters:,} parameters. Models so young and so small "
        "predict from the nearest characters: what far context is worth to a trained model, and what a window costs, "
        "is not seen here.",
        "Compare within a context. Across contexts the same budget buys fewer tokens of longer sequences, in smaller "
        "batches.",
        "One setting of each arm, none tuned; a learning rate of each model's own width. A `-size` model differs from "
        "`full` in its proportions too.",
        "In equal time: each run ended its own learning rate schedule, and log loss is taken as linear in log seconds "
        "between a family's budgets, which errs by a few per cent of the reducible loss; the intervals hold neither "
        "that nor the noise of the clock.",
        "FLOPs are products over visible pairs, native sparse attention's compressed branch included; choosing, "
        "gathering and softmax are no products and count as nothing, seconds hold them. On a CPU and tiny matrices "
        "they weigh most, so that saved FLOPs are not saved seconds here; other machines differ.",
        "The intervals hold the noise over seeds alone: not that of the validation text, which all runs share. Holm's "
        "correction is for the arms of one list, not for all contexts and both measures together.",
        f"Every difference is to `{FULL}`: two arms that both differ from it are not shown to differ from each other.",
    ]
