"""Where rows come from: runs of another corpus, or of other code, are no part of one study."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.checks import require
from toolkit.scaling.results import RunResult

DIGITS = 16
"""Of a corpus' hash, as rows hold it."""


def require_one_origin(rows: Sequence[RunResult], code: str, corpus: str, other_code: bool = False) -> None:
    """Refuse rows that this study's runs could not be compared with.

    Args:
        rows: finished runs.
        code: version of the code that goes on.
        corpus: hash of the tokenised corpus.
        other_code: allow rows that another version trained.

    Raises:
        ValueError: naming the rows, where they come from and what can be done.
    """
    strange = [row.run for row in rows if row.corpus != corpus[:DIGITS]]
    right = (
        f"a table of runs on the corpus {corpus[:DIGITS]}: {_some(strange)} were trained on another; use another out="
    )
    require(not strange, "results.csv", f"{len(strange)} rows", right)
    others = {row.code for row in rows if row.code != code}
    old = [row.run for row in rows if row.code != code]
    right = (
        f"a table of runs by this code, {code!r}: {_some(old)} were trained by {', '.join(map(repr, sorted(others)))}; "
        "use another out=, or --other_code true to go on with both, which the report will say"
    )
    require(other_code or not old, "results.csv", f"{len(old)} rows", right)


def require_one_corpus(rows: Sequence[RunResult]) -> None:
    """Refuse to analyse losses of different texts as one.

    Raises:
        ValueError: naming the corpora.
    """
    found = sorted({row.corpus for row in rows})
    require(len(found) <= 1, "rows", f"runs on the corpora {', '.join(map(repr, found))}", "runs on one corpus")


def mixed_code(rows: Sequence[RunResult]) -> str:
    """A sentence for a report where more than one version of the code trained the rows; empty where one did."""
    counts = {code: sum(row.code == code for row in rows) for code in sorted({row.code for row in rows})}
    if len(counts) < 2:
        return ""
    told = ", ".join(f"{count} by {code!r}" for code, count in counts.items())
    versions = f"different versions of the code ({told})"
    return f"The runs were trained by {versions}: a difference between them may be the code's."


def _some(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    return ", ".join(f"`{name}`" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
