"""The report of a study of routing: losses at equal FLOPs with intervals, balance, time, and what it cannot claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from toolkit.checks import require
from toolkit.files import write_atomically
from toolkit.scaling.claims import number, run_limits
from toolkit.scaling.comparison import ArmResult, compare, findings
from toolkit.scaling.course import RouterCourse, router_course
from toolkit.scaling.document import (
    StudyDescription,
    bullets,
    figure_section,
    runs_section,
    study_section,
)
from toolkit.scaling.figures import COLOURS, ReportFigure
from toolkit.scaling.laws.isoflop import finite_runs
from toolkit.scaling.results import RunResult
from toolkit.scaling.routing.arms import RoutingArms
from toolkit.scaling.routing.figures import plot_balance, plot_losses
from toolkit.scaling.routing.tables import arms_table, health_table, loss_table
from toolkit.scaling.study import Study
from toolkit.scaling.study_description import describe_study

TITLE = "Routers and balance methods at equal compute"
QUESTION = (
    "At the same training FLOPs, active width and depth, which way of routing predicts text better, how evenly does it "
    "load its experts, and what does a step cost on this machine's clock?"
)
TABLE = "results.csv"


def write_study_report(study: Study, rows: Sequence[RunResult]) -> Path:
    """Read the runs' routing back, draw the figures and write report.md and report.html into the study's folder.

    Raises:
        ValueError: no run ended with a finite loss.
    """
    shape = study.shape
    assert isinstance(shape, RoutingArms)
    courses = {row.run: router_course(study.folder.run(row.run)) for row in rows}
    description = replace(describe_study(study, TITLE, QUESTION), baseline=shape.baseline)
    return write_routing_report(study.folder.path, rows, courses, shape, description)


def write_routing_report(
    folder: Path,
    rows: Sequence[RunResult],
    courses: Mapping[str, RouterCourse],
    shape: RoutingArms,
    study: StudyDescription,
) -> Path:
    """Write ``report.md``, the same as ``report.html``, and the figures into ``folder``; the Markdown's path.

    Args:
        folder: of the study; made if absent.
        rows: the runs that ended, diverged ones included.
        courses: how routing went, by run name.
        shape: what was compared.
        study: how.

    Raises:
        ValueError: no run ended with a finite loss.
    """
    from toolkit.scaling.page.page import write_page

    finite, diverged = finite_runs(rows)
    require(bool(finite), "rows", f"{len(rows)} runs", "at least one finished run with a finite loss")
    sections, figures = [f"# {study.title}", f"**Question.** {study.question}"], []
    cells = sorted({(row.budget, row.dim) for row in finite})
    for budget, dim in cells:
        here = [row for row in finite if (row.budget, row.dim) == (budget, dim)]
        arms = compare(here, shape.baseline, courses, shape.families)
        causal = [arm for arm in arms if arm.family not in shape.not_causal]
        apart = [arm for arm in arms if arm.family in shape.not_causal]
        place = f"{number(budget)} FLOPs, dim {dim}"
        sections += [*_causal_section(causal, shape.baseline, place), *_apart_section(apart, shape.baseline, place)]
        figures += _figures(causal, shape.baseline, folder, f"dim{dim}-flops{number(budget)}")
    figures = [figure.backed(command=study.command) for figure in figures]
    sections += figure_section(figures, folder)
    sections += [
        "## The arms",
        "Attention, depth and width are the same in all. An arm's experts are as wide as makes a token's active ones "
        "together as wide as the dense feed-forward.",
        arms_table(shape),
        "## What this cannot claim",
        bullets([*run_limits(rows, diverged, study.planned_runs), *_limits(finite, shape.baseline, len(cells))]),
        *study_section(study),
        *runs_section(rows, TABLE),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.md"
    write_atomically(path, "\n\n".join(sections) + "\n")
    write_page(path, figures, path.with_suffix(".html"), study.title)
    return path


def _causal_section(arms: Sequence[ArmResult], baseline: str, place: str) -> list[str]:
    """The arms that may be compared at one budget and width."""
    if not arms:
        return []
    return [
        f"## At {place}",
        bullets(findings(arms, baseline)),
        f"All {sum(len(arm.rows) for arm in arms)} finished runs of `{TABLE}` at {place} of arms that are causal in "
        "evaluation. In brackets half the width of a 95% interval over seeds (Student's t); differences are taken seed "
        "by seed, of runs that see the same text in the same order; less is better. Seconds are steps x the time of "
        "one step by itself (see The study): equal FLOPs are not equal seconds.",
        loss_table(arms, baseline),
        _health_note(),
        health_table(arms),
    ]


def _apart_section(arms: Sequence[ArmResult], baseline: str, place: str) -> list[str]:
    """The arms that may not."""
    if not arms:
        return []
    return [
        f"## Not causal, at {place}",
        "These read later tokens of the very text they are scored on, in evaluation too: they are no language models, "
        "and their bits per byte are not comparable with those above.",
        loss_table(arms, baseline, compared=False),
        health_table(arms),
    ]


def _health_note() -> str:
    return (
        "Routing of the same runs, mean over layers and seeds. MaxVio is the busiest expert's load over the mean load, "
        "less 1, of the batch recorded nearest to that share of the schedule, and of the whole validation at the end; "
        "0 is balance. Dropped is the share of choices that capacity removed; evaluation drops nothing. Entropy is "
        "that of a token's probabilities at the end."
    )


def _figures(arms: Sequence[ArmResult], baseline: str, folder: Path, tag: str) -> list[ReportFigure]:
    """Losses of all arms and balance of the first ones; none where there is no arm."""
    routed = [arm for arm in arms if any("max_violation" in course.curves for _, course in arm.courses)]
    return [
        *([plot_losses(arms, baseline, folder / f"losses-{tag}.png")] if arms else []),
        *([plot_balance(routed[: len(COLOURS)], folder / f"balance-{tag}.png")] if routed else []),
    ]


def _limits(rows: Sequence[RunResult], baseline: str, cells: int) -> list[str]:
    """What no such study can claim, whatever its numbers."""
    steps, parameters = max(row.steps for row in rows), max(row.parameters for row in rows)
    return [
        f"{'One budget and width' if cells == 1 else f'{cells} budgets and widths'}, at most {steps:,} steps and "
        f"{parameters:,} parameters: an order found here need not hold at scale, and what a balance method gains or "
        "costs late, or over many devices, is not seen.",
        "One learning rate and one setting of each arm, none tuned for its loss: an arm that loses may lose to its "
        "setting.",
        "FLOPs count top_k experts for every token, also where fewer were computed: choices that capacity dropped, "
        "second experts that GShard's draw left out, and experts without computation beyond their fair share. Such "
        "arms computed less than the others at the same count. Sorting, gathering and choosing are no products and "
        "count as nothing; seconds hold them.",
        "Seconds are of this machine and these kernels on tiny matrices, where what is not a product weighs most. What "
        "an arm reaches in equal time is not measured: that takes several budgets (`experiments/dense_vs_sparse.py`).",
        "The intervals hold the noise over seeds alone: not that of the validation windows, which all runs share.",
        f"Every difference is to `{baseline}`: two arms that both differ from it are not shown to differ from "
        "each other.",
    ]
