"""The table of a study of context extension: a line a figure, by whole groups, so that a killed run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolkit.scaling.row_table import RowTable

BASE, AS_IS, TUNED = "base", "as is", "tuned"
STAGES = (BASE, AS_IS, TUNED)


@dataclass(frozen=True)
class Measurement:
    """One figure of the study.

    Attributes:
        seed: of the base run.
        method: what stretches the rotary embedding.
        stage: ``"base"`` and ``"tuned"`` for training and what it reached; ``"as is"`` before any fine-tune.
        length: tokens read at once.
        metric: what is measured.
        at: where in the context: a depth, positions ``"64-128"``; empty for the whole of it.
        value: the figure.
        rows: over how many rows or tokens; steps for those of training.
    """

    seed: int
    method: str
    stage: str
    length: int
    metric: str
    at: str
    value: float
    rows: int


class MeasurementTable(RowTable[Measurement]):
    """The figures of a study, by whole groups."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, Measurement)

    def has(self, seed: int, method: str, stage: str, length: int, metric: str) -> bool:
        """Whether the group that this figure belongs to is in the table."""
        wanted = (seed, method, stage, length, metric)
        return any((one.seed, one.method, one.stage, one.length, one.metric) == wanted for one in self.read())
