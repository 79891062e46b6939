"""The sections that every study's report has: figures, how it was made, every run; and Markdown's few forms."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.scaling.claims import number
from toolkit.scaling.results import RunResult
from toolkit.scaling.seeds import SeedMean

if TYPE_CHECKING:  # figures.py imports matplotlib, which only those who draw should wait for
    from toolkit.scaling.figures import ReportFigure

_RUN_COLUMNS = (
    "run | family | dim | budget | seed | parameters | active | tokens | epochs | steps | FLOPs planned "
    "| FLOPs spent | spent / planned | bits per byte | seconds | seconds in the sweep | MaxVio"
)


_BAR = re.compile(r"(?<!\\)\|")


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


def figure_section(figures: Sequence[ReportFigure], folder: Path) -> list[str]:
    """Each figure with its caption, by its path relative to ``folder``; nothing where there are none."""
    if not figures:
        return []
    return ["## Figures", *(_embedded(figure, folder) for figure in figures)]


def _embedded(figure: ReportFigure, folder: Path) -> str:
    relative = Path(os.path.relpath(figure.path, folder)).as_posix()
    return f"![{Path(figure.path).stem}]({relative})\n\n{figure.described()}"


def study_section(study: StudyDescription) -> list[str]:
    """How the study was made, and its resolved configuration."""
    facts = [
        f"Machine: {study.machine}",
        f"Precision: {study.precision}",
        f"Seconds: {study.seconds_source}",
        *([f"Code: {study.code_version}"] if study.code_version else []),
        *([f"Repeat it with: `{study.command}`"] if study.command else []),
    ]
    return [
        "## The study",
        bullets([*facts, *(f"Corpus: {line}" for line in study.corpus), *study.conventions]),
        f"<details><summary>Resolved configuration</summary>\n\n```yaml\n{study.config.strip()}\n```\n\n</details>",
    ]


def runs_section(rows: Sequence[RunResult], table: str, title: str = "Every run") -> list[str]:
    """A table of all ``rows``; ``table`` is the name of the file that holds them."""
    return [
        f"## {title}",
        f"{len(rows)} runs of `{table}`, which holds further columns. MaxVio is the busiest expert's "
        "load over the mean load, minus 1, mean over layers at the end of training; a dense model has none.",
        markdown_table(_RUN_COLUMNS, [_run_cells(row) for row in rows]),
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
        _flops(row.flops_planned),
        _flops(row.flops_spent),
        f"{row.flops_spent / row.flops_planned:.4f}",
        f"{row.bits_per_byte:.4f}" if math.isfinite(row.bits_per_byte) else "diverged",
        f"{row.seconds:.1f}",
        f"{row.seconds_wall:.1f}",
        "" if math.isnan(row.max_violation) else f"{row.max_violation:.2f}",
    )


def markdown_table(columns: str, body: Iterable[Sequence[str]]) -> str:
    """A Markdown table; ``columns`` is its first line, without the outer bars.

    A bar within a cell is escaped, in code too (GitHub's Markdown parts cells before it sees code).
    """
    rows = (" | ".join(_BAR.sub(r"\\|", cell) for cell in cells) for cells in body)
    lines = [columns, " | ".join(["---"] * (columns.count("|") + 1)), *rows]
    return "\n".join(f"| {line} |" for line in lines)


def _flops(value: float) -> str:
    """Four digits in the form of :func:`toolkit.scaling.claims.number`: 1.001e9."""
    mantissa, mark, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if mark else mantissa


def interval_cell(mean: SeedMean | None, form: str) -> str:
    """A mean with half its interval in brackets, ``"2.560 (± 0.020)"``; empty where there is none."""
    if mean is None or math.isnan(mean.value):
        return ""
    return form.format(mean.value) + ("" if mean.half is None else f" (± {mean.half:.3f})")


def verdict_cell(difference: SeedMean | None) -> str:
    """What the interval of a difference to the baseline says, of a loss; None is the baseline itself."""
    if difference is None:
        return "the baseline"
    if difference.half is None:
        return "no interval"
    return {-1: "better", 1: "worse", 0: "undecided"}[difference.side]


def bullets(lines: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)
