"""A table of one kind of dataclass that grows by whole groups of rows, written by one process."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from toolkit.checks import require
from toolkit.files import write_atomically

Row = TypeVar("Row")
_READ: dict[type, Callable[[str], Any]] = {str: str, int: int, float: float, bool: lambda text: text == "True"}


class RowTable(Generic[Row]):
    """A CSV file that is there as it was before a group or with all of it, so that a killed study goes on.

    Unlike :class:`toolkit.scaling.table.ResultsTable`, to which several processes append a line each.

    Args:
        path: the file; made by the first :meth:`write`.
        kind: the rows' dataclass, of texts, numbers and bools.
    """

    def __init__(self, path: Path, kind: type[Row]) -> None:
        self.path, self.kind = path, kind
        self.columns = tuple(field.name for field in fields(kind))  # type: ignore[arg-type]  # a dataclass

    def read(self) -> list[Row]:
        """Every row, in the order they were added; an absent file has none.

        Raises:
            ValueError: if the file has other columns, or a line is not whole.
        """
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file)) or [list(self.columns)]
        right = f"a table with the columns {', '.join(self.columns)}"
        require(tuple(header) == self.columns, str(self.path), header, right)
        types = get_type_hints(self.kind)
        read = [_READ[types[name]] for name in self.columns]
        return [self.kind(*(as_(text) for as_, text in zip(read, line, strict=True))) for line in lines]

    def extend(self, group: Sequence[Row]) -> None:
        """Add a group, and wait until it is on the disk."""
        self.write([*self.read(), *group])

    def write(self, rows: Sequence[Row]) -> None:
        """Put these rows in the place of those that are there, and wait until they are on the disk."""
        text = io.StringIO()
        lines = [astuple(row) for row in rows]  # type: ignore[call-overload]  # a dataclass
        csv.writer(text, lineterminator="\n").writerows([self.columns, *lines])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text.getvalue())
