"""The table of finished runs: a CSV that survives a killed process and several writers at once."""

from __future__ import annotations

import csv
import fcntl
import io
import operator
import os
import warnings
from collections.abc import Callable
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, get_type_hints

from toolkit.checks import require
from toolkit.scaling.locks import locked
from toolkit.scaling.results import RunResult

_COLUMNS = tuple(field.name for field in fields(RunResult))
_TYPES = get_type_hints(RunResult)
_PARSE: dict[type, Callable[[str], Any]] = {str: str, int: int, float: float}
# repr(float) is the shortest text that reads back as the same double; operator.index refuses 1.5
_FORMAT: dict[type, Callable[[Any], str]] = {
    str: str,
    int: lambda value: str(operator.index(value)),
    float: lambda value: repr(float(value)),
}


class ResultsTable:
    """A CSV file of :class:`RunResult` rows that only ever grows by whole lines.

    A line is a finished run if it ends in a newline and has every field. A process killed while it
    appends can leave a torn last line; that run does not count as finished: :meth:`read` warns and
    leaves it out, and the next :meth:`append` cuts it off. Writers in several processes take turns by
    ``flock`` on the file, on several machines too where the file system carries such locks
    (:func:`toolkit.scaling.locks.locked`). Values read back exactly as they were, nan included.

    Args:
        path: the file; it and its folder are made by the first append.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, result: RunResult) -> None:
        """Add one finished run as one line and wait until it is on the disk.

        Raises:
            ValueError: the table has this run already, has another header, or a field holds a line break.
        """
        line = _line(_format(result))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as descriptor:
            text = _read_all(descriptor)
            rows, whole = self._parse(text)
            require(all(row.run != result.run for row in rows), "run", result.run, f"a run not yet in {self.path}")
            os.ftruncate(descriptor, whole)
            os.lseek(descriptor, whole, os.SEEK_SET)
            _write_all(descriptor, line if whole else _line(_COLUMNS) + line)
            os.fsync(descriptor)

    def read(self) -> list[RunResult]:
        """Return the finished runs in the order they ended; an absent file has none.

        Warns:
            UserWarning: the last line is torn; the message shows it.

        Raises:
            ValueError: another header, a damaged line before the last, or two runs of one name.
        """
        if not self.path.exists():
            return []
        with locked(self.path, os.O_RDONLY, fcntl.LOCK_SH) as descriptor:
            return self._parse(_read_all(descriptor))[0]

    def _parse(self, text: bytes) -> tuple[list[RunResult], int]:
        """Split the file into its finished runs and the length in bytes of its whole lines."""
        *lines, tail = text.split(b"\n")
        if not lines:
            # killed while it wrote the header: nothing was finished
            require(_line(_COLUMNS).startswith(tail), str(self.path), tail.decode(), "a table of runs")
            return [], 0
        self._check_header(_fields(lines[0]))
        body = lines[1:]
        if not tail and body and len(_fields(body[-1])) != len(_COLUMNS):
            tail = body.pop() + b"\n"
        if tail:
            warnings.warn(
                f"{self.path}: the last line is torn and is not a finished run: {tail.decode(errors='replace')!r}",
                stacklevel=3,
            )
        rows = [self._row(number, line) for number, line in enumerate(body, start=2)]
        self._check_names(rows)
        return rows, len(text) - len(tail)

    def _check_header(self, header: list[str]) -> None:
        """Refuse a table whose columns are not those of :class:`RunResult`."""
        if tuple(header) == _COLUMNS:
            return
        missing = [name for name in _COLUMNS if name not in header]
        unknown = [name for name in header if name not in _COLUMNS]
        difference = f"missing {missing}, unknown {unknown}" if missing or unknown else "another order"
        raise ValueError(
            f"{self.path}: its columns are not this version's ({difference}); "
            "read it with the version that wrote it, or move it away"
        )

    def _row(self, number: int, line: bytes) -> RunResult:
        """Parse one line; line numbers count from 1, the header being line 1."""
        values = _fields(line)
        try:
            pairs = zip(_COLUMNS, values, strict=True)
            return RunResult(**{name: _PARSE[_TYPES[name]](value) for name, value in pairs})
        except ValueError as error:
            raise ValueError(f"{self.path}, line {number}: not a run ({error}): {line.decode()!r}") from error

    def _check_names(self, rows: list[RunResult]) -> None:
        """Refuse two rows of one name: which of them is the run could not be told."""
        names = [row.run for row in rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{self.path}: run names must be unique, these are not: {', '.join(twice)}")


def _read_all(descriptor: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read()


def _write_all(descriptor: int, data: bytes) -> None:
    while data:  # os.write may write only a part
        data = data[os.write(descriptor, data) :]


def _format(result: RunResult) -> list[str]:
    """Turn a row into text fields, none of which may break the line."""
    values = [_FORMAT[_TYPES[name]](value) for name, value in zip(_COLUMNS, astuple(result), strict=True)]
    for name, value in zip(_COLUMNS, values, strict=True):
        require("\n" not in value and "\r" not in value, name, value, "one line of text")
    return values


def _line(values: list[str] | tuple[str, ...]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue().encode()


def _fields(line: bytes) -> list[str]:
    return next(csv.reader([line.decode(errors="replace")]), [])
