"""The table of a study of reach: an arm, seed and distance a line, by whole runs, so that a killed study goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from toolkit.checks import require
from toolkit.files import write_atomically


@dataclass(frozen=True)
class ReachRow:
    """How often one trained model was right at one distance.

    Attributes:
        pattern: the arm's name.
        seed: of the initialisation and of the training rows.
        distance: between the pair and the question.
        accuracy: share of the ``rows`` that are right.
        rows: questions asked.
        reached: whether the arm's masks lead from the pair to the question, if keys are chosen so.
        certain: the same, whatever is chosen.
        value_reached: whether they lead from the value at least.
        steps, flops, loss, seconds: of the run, see :class:`toolkit.training.task_training.TaskRun`.
    """

    pattern: str
    seed: int
    distance: int
    accuracy: float
    rows: int
    reached: bool
    certain: bool
    value_reached: bool
    steps: int
    flops: float
    loss: float
    seconds: float


COLUMNS = tuple(field.name for field in fields(ReachRow))
_READ: dict[Any, Callable[[str], Any]] = {"str": str, "int": int, "float": float, "bool": lambda text: text == "True"}


def read_rows(path: Path) -> list[ReachRow]:
    """The rows of the file; none where there is none.

    Raises:
        ValueError: if its columns are not those of :class:`ReachRow`, or a line is not whole.
    """
    if not path.exists():
        return []
    header, *lines = csv.reader(path.read_text(encoding="utf-8").splitlines())
    require(tuple(header) == COLUMNS, str(path), header, f"a table of {', '.join(COLUMNS)}")
    return [
        ReachRow(*(_READ[field.type](text) for field, text in zip(fields(ReachRow), line, strict=True)))
        for line in lines
    ]


def write_rows(path: Path, rows: Sequence[ReachRow]) -> None:
    """Write the file anew; it appears whole or stays as it was."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *(astuple(row) for row in rows)])
    write_atomically(path, text.getvalue())
