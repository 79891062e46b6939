"""The report of a study: report.md with the answer, its figures, every run, and what it cannot claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.checks import require
from toolkit.files import write_atomically
from toolkit.scaling.claims import answer, limits, number, times, verdict
from toolkit.scaling.document import (
    StudyDescription,
    bullets,
    figure_section,
    markdown_table,
    runs_section,
    study_section,
)
from toolkit.scaling.laws.isoflop import finite_runs, isoflop_minima, seed_noise
from toolkit.scaling.multiplier import ComputeMultiplier, compute_multiplier
from toolkit.scaling.results import RunResult

if TYPE_CHECKING:  # figures.py imports matplotlib, which only those who draw should wait for
    from toolkit.scaling.figures import ReportFigure

_MULTIPLIER_COLUMNS = (
    "family | budget (FLOPs) | bits per byte | **multiplier at equal FLOPs** | verdict "
    "| seconds | bits per byte in that time | **multiplier at equal seconds** | verdict"
)
_MINIMUM_COLUMNS = (
    "family | budget (FLOPs) | best size (active parameters) | bits per byte | method | at the grid's edge "
    "| sizes | best measured: dim | bits per byte | seconds | its runs"
)


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
    sections: Sequence[str] = (),
    others: Mapping[str, Sequence[RunResult]] | None = None,
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
        sections: further ones, Markdown, after the multipliers.
        others: runs besides that no claim above rests on, by the heading of their table.
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
        *sections,
        *figure_section(figures, path.parent),
        *_minima_section(finite, table),
        "## What this cannot claim",
        bullets([*limits(rows, multipliers, study.planned_runs), *caveats]),
        *study_section(study),
        *runs_section(rows, table),
        *(part for title, more in (others or {}).items() if more for part in runs_section(more, table, title)),
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
        f"Above 1, sparsity paid. {spread} From the {len(rows)} finished runs of the grid in `{table}`.",
        markdown_table(_MULTIPLIER_COLUMNS, body),
    ]


def _flags(entry: ComputeMultiplier, kind: str) -> str:
    estimate = getattr(entry, kind)
    flags = [verdict(estimate)]
    if estimate.extrapolated:
        return ", ".join([*flags, "extrapolated"])
    return ", ".join([*flags, "interval extrapolated"] if estimate.interval_extrapolated else flags)


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
        f"From the {len(rows)} finished runs of the grid in `{table}`. A parabola's minimum is the loss expected at a "
        "size that was not trained, and can lie below every measured one.",
        markdown_table(_MINIMUM_COLUMNS, body),
    ]
