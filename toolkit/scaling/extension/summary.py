"""What a study of context extension measured, by method, stage and length, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.checks import require
from toolkit.data.evaluation import effective_length
from toolkit.scaling.extension.evaluation import PASSKEY, POSITION, SLIDING
from toolkit.scaling.extension.methods import BASELINE, NAMES
from toolkit.scaling.extension.table import AS_IS, Measurement
from toolkit.scaling.seeds import SeedMean, mean_over_seeds

RATIO = 0.85
"""NoLiMa's share of the base score that is to be kept (Modarressi et al. 2025)."""


@dataclass(frozen=True)
class ExtensionSummary:
    """Reads figures off the table's lines; seeds are averaged last.

    Args:
        rows: of the table.

    Raises:
        ValueError: the baseline was not evaluated.
    """

    rows: tuple[Measurement, ...]

    def __post_init__(self) -> None:
        right = f"with an evaluation of {BASELINE!r} as is: the others are measured against it"
        require(bool(self.lengths), "rows", f"{len(self.rows)} rows", right)

    @property
    def methods(self) -> list[str]:
        """Those evaluated, in the order of the methods' list."""
        found = {row.method for row in self.rows if row.metric == SLIDING}
        return [name for name in NAMES if name in found]

    @property
    def lengths(self) -> list[int]:
        """Of the evaluation, ascending; the first is L."""
        return sorted(
            {row.length for row in self.rows if (row.method, row.stage, row.metric) == (BASELINE, AS_IS, SLIDING)}
        )

    @property
    def seeds(self) -> list[int]:
        """Base runs."""
        return sorted({row.seed for row in self.rows})

    def by_seed(self, method: str, stage: str, length: int, metric: str, at: str | None = None) -> dict[int, float]:
        """A metric of each seed that has it, averaged over where it was taken unless ``at`` says one."""
        found: dict[int, list[float]] = {}
        for row in self.rows:
            if (row.method, row.stage, row.length, row.metric) == (method, stage, length, metric) and at in (
                None,
                row.at,
            ):
                found.setdefault(row.seed, []).append(row.value)
        return {seed: float(np.mean(values)) for seed, values in found.items()}

    def mean(self, method: str, stage: str, length: int, metric: str, at: str | None = None) -> SeedMean:
        """The same over seeds; nan where there is none."""
        return mean_over_seeds(list(self.by_seed(method, stage, length, metric, at).values()))

    def by_position(self, method: str, stage: str, length: int) -> list[tuple[int, int, float]]:
        """(low, high, bits per byte) of each bucket of positions at that length, mean over seeds."""
        found: dict[tuple[int, int], list[float]] = {}
        for row in self.rows:
            if (row.method, row.stage, row.length, row.metric) == (method, stage, length, POSITION):
                low, high = (int(edge) for edge in row.at.split("-"))
                found.setdefault((low, high), []).append(row.value)
        return [(low, high, float(np.mean(values))) for (low, high), values in sorted(found.items())]

    def passkey_grid(self, method: str, stage: str) -> tuple[list[float], np.ndarray]:
        """Depths, and the share of whole passkeys found, (depths, lengths), mean over seeds; nan where not asked."""
        depths = sorted({float(row.at) for row in self.rows if row.metric == PASSKEY})
        grid = [
            [self.mean(method, stage, length, PASSKEY, f"{depth:g}").value for length in self.lengths]
            for depth in depths
        ]
        return depths, np.array(grid)

    def effective_lengths(self, method: str, stage: str) -> dict[int, int]:
        """Of each seed, tokens: the longest length at which passkeys have 0.85 of the base score; 0 if none has.

        NoLiMa's rule, the base score being for every method that of the model as it was trained, at L: else a method
        that spoils L would be asked for less.
        """
        found = {}
        base = self.by_seed(BASELINE, AS_IS, self.lengths[0], PASSKEY)
        each = {length: self.by_seed(method, stage, length, PASSKEY) for length in self.lengths}
        for seed in sorted(set.intersection(*(set(scores) for scores in each.values()))):
            scores = {0: base[seed], **{length: scores[seed] for length, scores in each.items()}}
            found[seed] = effective_length(scores, 0, RATIO) if base[seed] > 0 else 0
        return found


def summarise(rows: Sequence[Measurement]) -> ExtensionSummary:
    """The summary of these lines."""
    return ExtensionSummary(tuple(rows))
