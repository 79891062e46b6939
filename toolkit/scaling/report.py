"""The report of a study: report.md with the answer, its figures, every run, and what it cannot claim."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.checks import require
from toolkit.files import write_atomically
from toolkit.scaling.claims import answer, limits, number, times, verdict
from toolkit.scaling.isoflop import finite_runs, isoflop_minima, seed_noise
from toolkit.scaling.multiplier import ComputeMultiplier, compute_multiplier
from toolkit.scaling.results import RunResult

if TYPE_CHECKING:  # figures.py imports matplotlib, which only those who draw should wait for
    from toolkit.scaling.figures import ReportFigure

_MULTIPLIER_COLUMNS = (
    "family | budget (FLOPs) | bits per byte | **multiplier at equal FLOPs** | "
    "| seconds | bits per byte in that time | **multiplier at equal seconds** | "
)
_MINIMUM_COLUMNS = (
    "family | budget (FLOPs) | best size (active parameters) | bits per byte | method | at the grid's edge "
    "| sizes | best measured: dim | bits per byte | seconds | its runs"
)
_RUN_COLUMNS = (
    "run | family | dim | budget | seed | parameters | active | tokens | epochs | steps | FLOPs planned "
    "| FLOPs spent | spent / planned | bits per byte | seconds | seconds in the sweep | MaxVio"
)


@dataclass(frozen=True)
class StudyDescription:
    """What was run and how, in the words the report repeats.

    Attributes:
        title: the report's heading.
        question: one sentence.
        config: the resolved configuration, as text (YAML).
        corpus: lines that tell the text, its split and its hash.
        machine: one line.
        precision: one line.
        conventions: lines that tell how FLOPs, seconds and losses are counted.
        seconds_source: how the isolated time of a step was measured.
        code_version: commit or release.
        command: what repeats the study.
        planned_runs: names of all planned runs, finished or not.
        baseline: the family that the others are measured against.
    """

    title: str
    question: str
    config: str
    corpus: tuple[str, ...]
    machine: str
    precision: str
    conventions: tuple[str, ...]
    seconds_source: str
    code_version: str = ""
    command: str = ""
    planned_runs: tuple[str, ...] = ()
    baseline: str = "dense"


def study_multipliers(rows: Sequence[RunResult], baseline: str, *, resamples: int = 2000) -> list[ComputeMultiplier]:
    """Compute the multiplier of every other family; none where there is nothing to compare."""
    families = dict.fromkeys(row.family for row in rows)
    if baseline not in families:
        return []
    return [
        entry
        for family in families
        if family != baseline
        for entry in compute_multiplier(rows, family, baseline, resamples=resamples)
    ]


def write_report(
    folder: str | Path,
    rows: Sequence[RunResult],
    study: StudyDescription,
    *,
    caveats: Sequence[str] = (),
    figures: Sequence[ReportFigure] = (),
    table: str = "results.csv",
    resamples: int = 2000,
) -> Path:
    """Write ``report.md`` into the run's folder and return its path; it appears whole or not at all.

    Args:
        folder: of the study; made if absent.
        rows: the runs that ended, diverged ones included.
        study: what was run.
        caveats: further sentences for "What this cannot claim".
        figures: to embed, in this order; see :mod:`toolkit.scaling.figures`.
        table: the name of the file that holds ``rows``.
        resamples: of the bootstrap.

    Raises:
        ValueError: no run ended with a finite loss.
    """
    finite, _ = finite_runs(rows)
    require(bool(finite), "rows", f"{len(rows)} runs", "at least one finished run with a finite loss")
    multipliers = study_multipliers(finite, study.baseline, resamples=resamples)
    path = Path(folder) / "report.md"
    sections = [
        f"# {study.title}",
        *_answer_section(multipliers, study),
        *_multiplier_section(finite, multipliers, study, table),
        *_figure_section(figures, path.parent),
        *_minima_section(finite, table),
        "## What this cannot claim",
        _bullets([*limits(rows, multipliers, study.planned_runs, study.seconds_source), *caveats]),
        *_study_section(study),
        *_runs_section(rows, table),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n\n".join(sections) + "\n")
    return path


def _answer_section(multipliers: Sequence[ComputeMultiplier], study: StudyDescription) -> list[str]:
    nothing = [f"Nothing to compare: there are no finished runs of `{study.baseline}` beside another family's."]
    return [f"**Question.** {study.question}", "## Answer", *(answer(multipliers) or nothing)]


def _multiplier_section(
    rows: Sequence[RunResult], multipliers: Sequence[ComputeMultiplier], study: StudyDescription, table: str
) -> list[str]:
    if not multipliers:
        return []
    body = [
        (
            f"`{entry.family}`",
            number(entry.budget),
            f"{entry.loss:.3f}",
            times(entry.equal_flops),
            _flags(entry, "equal_flops"),
            number(entry.seconds),
            f"{entry.loss_at_seconds:.3f}",
            times(entry.equal_seconds),
            _flags(entry, "equal_seconds"),
        )
        for entry in multipliers
    ]
    noise = seed_noise(rows)
    spread = (
        "No cell has two seeds, so there are no intervals."
        if noise is None
        else f"In brackets 95% intervals from the noise over seeds: {noise.sd:.4f} bits per byte for one "
        f"run, pooled, {noise.degrees_of_freedom} degrees of freedom."
    )
    return [
        "## Compute multiplier",
        f"How many times the family's FLOPs, or seconds, `{study.baseline}` needs for the family's loss. "
        f"Above 1, sparsity paid. {spread} From all {len(rows)} finished runs of `{table}`.",
        _table(_MULTIPLIER_COLUMNS, body),
    ]


def _flags(entry: ComputeMultiplier, kind: str) -> str:
    estimate = getattr(entry, kind)
    flags = [verdict(estimate)]
    if estimate.extrapolated:
        return ", ".join([*flags, "extrapolated"])
    return ", ".join([*flags, "interval extrapolated"] if estimate.interval_extrapolated else flags)


def _figure_section(figures: Sequence[ReportFigure], folder: Path) -> list[str]:
    if not figures:
        return []
    return ["## Figures", *(_embedded(figure, folder) for figure in figures)]


def _embedded(figure: ReportFigure, folder: Path) -> str:
    relative = Path(os.path.relpath(figure.path, folder)).as_posix()
    return f"![{Path(figure.path).stem}]({relative})\n\n*{figure.caption}*"


def _minima_section(rows: Sequence[RunResult], table: str) -> list[str]:
    body = [
        (
            f"`{minimum.family}`",
            number(minimum.budget),
            f"{minimum.size:,.0f}",
            f"{minimum.loss:.3f}",
            minimum.method,
            "yes" if minimum.at_edge else "no",
            str(minimum.sizes),
            str(minimum.best.dim),
            f"{minimum.best.loss:.3f}",
            number(minimum.best.seconds),
            ", ".join(f"`{run}`" for run in minimum.best.runs),
        )
        for minimum in isoflop_minima(rows)
    ]
    return [
        "## IsoFLOP minima",
        f"From all {len(rows)} finished runs of `{table}`. A parabola's minimum is the loss expected at a "
        "size that was not trained, and can lie below every measured one.",
        _table(_MINIMUM_COLUMNS, body),
    ]


def _study_section(study: StudyDescription) -> list[str]:
    facts = [
        f"Machine: {study.machine}",
        f"Precision: {study.precision}",
        f"Seconds: {study.seconds_source}",
        *([f"Code: {study.code_version}"] if study.code_version else []),
        *([f"Repeat it with: `{study.command}`"] if study.command else []),
    ]
    return [
        "## The study",
        _bullets([*facts, *(f"Corpus: {line}" for line in study.corpus), *study.conventions]),
        f"<details><summary>Resolved configuration</summary>\n\n```yaml\n{study.config.strip()}\n```\n\n</details>",
    ]


def _runs_section(rows: Sequence[RunResult], table: str) -> list[str]:
    return [
        "## Every run",
        f"All {len(rows)} runs of `{table}`, which holds further columns. MaxVio is the busiest expert's "
        "load over the mean load, minus 1, mean over layers at the end of training; a dense model has none.",
        _table(_RUN_COLUMNS, [_run_cells(row) for row in rows]),
    ]


def _run_cells(row: RunResult) -> tuple[str, ...]:
    return (
        f"`{row.run}`",
        f"`{row.family}`",
        str(row.dim),
        number(row.budget),
        str(row.seed),
        f"{row.parameters:,}",
        f"{row.active_parameters:,}",
        f"{row.tokens:,}",
        f"{row.epochs:.2f}",
        f"{row.steps:,}",
        f"{row.flops_planned:.4g}".replace("e+", "e"),
        f"{row.flops_spent:.4g}".replace("e+", "e"),
        f"{row.flops_spent / row.flops_planned:.4f}",
        f"{row.bits_per_byte:.4f}" if math.isfinite(row.bits_per_byte) else "diverged",
        f"{row.seconds:.1f}",
        f"{row.seconds_wall:.1f}",
        "" if math.isnan(row.max_violation) else f"{row.max_violation:.2f}",
    )


def _table(columns: str, body: Iterable[Sequence[str]]) -> str:
    """A Markdown table; ``columns`` is its first line, without the outer bars."""
    lines = [columns, " | ".join(["---"] * (columns.count("|") + 1)), *(" | ".join(cells) for cells in body)]
    return "\n".join(f"| {line} |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
