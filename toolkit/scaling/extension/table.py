"""The table of a study of context extension: a line a figure, by whole groups, so that a killed run goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from toolkit.checks import require
from toolkit.files import write_atomically

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


COLUMNS = tuple(field.name for field in fields(Measurement))


class MeasurementTable:
    """A CSV file that grows by whole groups: it is there as it was before a group or with all of it.

    Args:
        path: the file; made by the first :meth:`extend`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Measurement]:
        """Every figure, in the order they were added; an absent file has none.

        Raises:
            ValueError: the file has other columns.
        """
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file)) or [list(COLUMNS)]
        require(tuple(header) == COLUMNS, str(self.path), header, f"a table with the columns {', '.join(COLUMNS)}")
        return [
            Measurement(int(seed), method, stage, int(length), metric, at, float(value), int(rows))
            for seed, method, stage, length, metric, at, value, rows in lines
        ]

    def extend(self, group: Sequence[Measurement]) -> None:
        """Add a group, and wait until it is on the disk."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(astuple(one) for one in [*self.read(), *group])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text.getvalue())

    def has(self, seed: int, method: str, stage: str, length: int, metric: str) -> bool:
        """Whether the group that this figure belongs to is in the table."""
        wanted = (seed, method, stage, length, metric)
        return any((one.seed, one.method, one.stage, one.length, one.metric) == wanted for one in self.read())
