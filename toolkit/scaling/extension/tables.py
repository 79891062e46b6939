"""The tables of a study of context extension: methods by lengths, effective lengths, what each stage spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from toolkit.scaling.claims import number
from toolkit.scaling.document import interval_cell, markdown_table
from toolkit.scaling.extension.evaluation import PASSKEY
from toolkit.scaling.extension.methods import Method, Stretch
from toolkit.scaling.extension.summary import ExtensionSummary
from toolkit.scaling.extension.table import AS_IS, BASE, TUNED
from toolkit.scaling.seeds import SeedMean

_SPENT = (
    "stage | method | context | steps | tokens | FLOPs | seconds | load average when it began | bits per byte at its "
    "context"
)


def by_length(summary: ExtensionSummary, metric: str, form: str) -> str:
    """A row for each method and stage, a column for each length; with half a 95% interval where there are seeds."""
    columns = "method | stage | " + " | ".join(f"{length:,}" for length in summary.lengths)
    return _two_stages(
        summary,
        columns,
        lambda method, stage: [
            interval_cell(summary.mean(method, stage, length, metric), form) for length in summary.lengths
        ],
    )


def effective_table(summary: ExtensionSummary) -> str:
    """Effective length of each seed, and its share of the longest."""
    columns = "method | stage | effective length (tokens), each seed | passkeys found at L | at the longest"
    lengths = summary.lengths

    def cells(method: str, stage: str) -> list[str]:
        found = summary.effective_lengths(method, stage).values()
        ends = [
            interval_cell(summary.mean(method, stage, length, PASSKEY), "{:.2f}")
            for length in (lengths[0], lengths[-1])
        ]
        return [", ".join(f"{length:,}" if length else "none" for length in found), *ends]

    return _two_stages(summary, columns, cells)


def spent_table(summary: ExtensionSummary) -> str:
    """FLOPs and seconds of each training run: base runs, then fine-tunes; means over seeds."""
    body = []
    trained = [row for row in summary.rows if row.metric == "training_flops"]
    for stage in (BASE, TUNED):
        places = dict.fromkeys((row.method, row.length) for row in trained if row.stage == stage)
        for method, context in places:
            steps = next(row.rows for row in trained if (row.stage, row.method) == (stage, method))

            def mean(metric: str, stage: str = stage, method: str = method, context: int = context) -> SeedMean:
                return summary.mean(method, stage, context, metric)

            body.append([
                stage,
                "" if stage == BASE else f"`{method}`",
                f"{context:,}",
                f"{steps:,}",
                f"{mean('training_tokens').value:,.0f}",
                f"{mean('training_flops').value:.4g}".replace("e+", "e"),
                f"{mean('training_seconds').value:.0f}",
                f"{mean('load_average').value:.1f}",
                f"{mean('validation_bits_per_byte').value:.3f}",
            ])  # fmt: skip
    return markdown_table(_SPENT, body)


def method_table(methods: Sequence[Method], stretch: Stretch) -> str:
    """What each method is, and its setting in this model."""
    body = [
        [f"`{method.name}`", method.about, f"`{_short(method.text(stretch))}`" if method.text(stretch) else "none"]
        for method in methods
    ]
    return markdown_table("method | what it does | setting here", body)


def evaluation_seconds(summary: ExtensionSummary) -> float:
    """Of all evaluations together."""
    return math.fsum(row.value for row in summary.rows if row.metric == "evaluation_seconds")


def training_flops_apart(summary: ExtensionSummary) -> tuple[str, str]:
    """The fewest and the most FLOPs of a fine-tune."""
    spent = [row.value for row in summary.rows if (row.stage, row.metric) == (TUNED, "training_flops")]
    return number(min(spent, default=math.nan)), number(max(spent, default=math.nan))


def _short(text: str | None) -> str:
    """LongRoPE's lists are as long as a head is wide: the first and the last of each."""
    text = text or ""
    while (start := text.find("(1.0, ")) >= 0:
        end = text.index(")", start)
        values = text[start + 1 : end].split(", ")
        runs: list[list[str]] = []
        for value in values:
            if runs and runs[-1][0] == value:
                runs[-1].append(value)
            else:
                runs.append([value])
        text = text[:start] + "<" + " then ".join(f"{len(run)} x {run[0]}" for run in runs) + ">" + text[end + 1 :]
    return text


def _two_stages(summary: ExtensionSummary, columns: str, cells: Callable[[str, str], list[str]]) -> str:
    body = [[f"`{method}`", stage, *cells(method, stage)] for stage in (AS_IS, TUNED) for method in summary.methods]
    return markdown_table(columns, body)
