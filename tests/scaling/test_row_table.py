"""A table that grows by whole groups: what is read is what was written, and nothing else is taken for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from toolkit.scaling.row_table import RowTable


@dataclass(frozen=True)
class Line:
    name: str
    count: int
    value: float
    sure: bool


ROWS = [Line("a, b", 1, 0.1 + 0.2, True), Line("line\nbreak", -2, 1e-300, False), Line("", 0, float("inf"), True)]


def test_rows_read_back_as_they_were_in_the_order_they_came(tmp_path: Path) -> None:
    table = RowTable(tmp_path / "deep" / "table.csv", Line)
    assert table.read() == []
    table.extend(ROWS[:1])
    table.extend(ROWS[1:])
    assert table.read() == ROWS
    table.write(ROWS[::-1])
    assert table.read() == ROWS[::-1]


def test_a_group_that_cannot_be_written_leaves_the_table_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = RowTable(tmp_path / "table.csv", Line)
    table.extend(ROWS)

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        table.extend(ROWS)
    assert table.read() == ROWS


def test_another_table_is_refused_by_its_columns(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="it must be a table with the columns name, count, value, sure"):
        RowTable(tmp_path / "table.csv", Line).read()
