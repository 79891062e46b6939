"""The table of runs: exact round trips, torn lines, several writers, foreign files."""

from __future__ import annotations

import math
import multiprocessing
import re
import warnings
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_study import run_result

from toolkit.scaling.results import RunResult
from toolkit.scaling.table import ResultsTable

ROW = run_result("dense", 1e12, 64, 0, 2.25)


def named(name: str) -> RunResult:
    return replace(ROW, run=name)


def same(left: RunResult, right: RunResult) -> bool:
    """Equal, nan being equal to nan."""
    return all(
        type(a) is type(b) and (a == b or (a != a and b != b))
        for a, b in zip(astuple(left), astuple(right), strict=True)
    )


def test_absent_table_is_empty(tmp_path: Path) -> None:
    assert ResultsTable(tmp_path / "none.csv").read() == []


@settings(max_examples=50, deadline=None)
@given(
    loss=st.floats(),
    steps=st.integers(),
    name=st.text(st.characters(exclude_characters="\n\r", exclude_categories=("Cs",)), min_size=1),
)
def test_values_read_back_exactly(tmp_path_factory: pytest.TempPathFactory, loss: float, steps: int, name: str) -> None:
    path = tmp_path_factory.mktemp("table") / "results.csv"
    row = replace(ROW, run=name, bits_per_byte=loss, steps=steps, seconds=0.1 + 0.2)
    ResultsTable(path).append(row)
    (found,) = ResultsTable(path).read()
    assert same(found, row)


def test_numpy_scalars_are_written_as_numbers(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "results.csv")
    table.append(replace(ROW, bits_per_byte=np.float64(0.1), steps=np.int64(7)))  # type: ignore[arg-type]
    (found,) = table.read()
    assert (found.bits_per_byte, found.steps) == (0.1, 7)


def test_fraction_is_no_integer(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        ResultsTable(tmp_path / "results.csv").append(replace(ROW, steps=1.5))  # type: ignore[arg-type]
    assert not (tmp_path / "results.csv").exists()


def test_rows_keep_their_order_and_the_folder_is_made(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "deep" / "results.csv")
    for name in "cab":
        table.append(named(name))
    assert [row.run for row in table.read()] == ["c", "a", "b"]


def test_every_cut_is_survived(tmp_path: Path) -> None:
    """Cut the file at every byte: whole lines are kept, the torn one is reported, appending goes on."""
    path = tmp_path / "results.csv"
    table = ResultsTable(path)
    for name in ("first", "second"):
        table.append(named(name))
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = [name for name, end in zip(("first", "second"), ends[1:], strict=True) if end <= cut]
        torn = cut > ends[0] and cut not in ends
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert [row.run for row in table.read()] == kept
            table.append(named("third"))
        assert len(caught) == (2 if torn else 0)
        assert [row.run for row in table.read()] == [*kept, "third"]


def test_torn_line_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    ResultsTable(path).append(ROW)
    with path.open("a") as file:
        file.write("moe-dim32,moe,3e1")
    with pytest.warns(UserWarning, match="torn.*moe-dim32,moe,3e1"):
        assert len(ResultsTable(path).read()) == 1


def test_last_line_with_too_few_fields_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    ResultsTable(path).append(ROW)
    with path.open("a") as file:
        file.write("moe-dim32,moe,3e11\n")
    with pytest.warns(UserWarning, match="torn"):
        assert len(ResultsTable(path).read()) == 1
    with pytest.warns(UserWarning, match="torn"):
        ResultsTable(path).append(named("next"))
    assert [row.run for row in ResultsTable(path).read()] == [ROW.run, "next"]


def test_damage_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    ResultsTable(path).append(ROW)
    ResultsTable(path).append(named("second"))
    path.write_text(path.read_text().replace("2.25", "oops", 1))
    with pytest.raises(ValueError, match=r"results\.csv, line 2: not a run.*oops"):
        ResultsTable(path).read()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",corpus\n", ",corpora\n", r"missing \['corpus'\], unknown \['corpora'\]"),
        ("run,family", "family,run", "another order"),
        (",seed", "", r"missing \['seed'\]"),
    ],
)
def test_other_header_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "results.csv"
    ResultsTable(path).append(ROW)
    path.write_text(path.read_text().replace(old, new, 1))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"results\.csv.*{message}"):
        ResultsTable(path).read()
    with pytest.raises(ValueError, match=message):
        ResultsTable(path).append(named("second"))
    assert path.read_bytes() == before


def test_file_that_is_no_table_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("my notes")
    with pytest.raises(ValueError, match="a table of runs"):
        ResultsTable(path).append(ROW)
    assert path.read_text() == "my notes"


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    ResultsTable(path).append(ROW)
    with pytest.raises(ValueError, match=rf"run='{re.escape(ROW.run)}'.*not yet in"):
        ResultsTable(path).append(ROW)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1]]) + "\n")
    with pytest.raises(ValueError, match=rf"unique.*{re.escape(ROW.run)}"):
        ResultsTable(path).read()


def test_line_break_in_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one line of text"):
        ResultsTable(tmp_path / "results.csv").append(named("two\nlines"))


def _append_many(path: Path, writer: int, count: int) -> None:
    for number in range(count):
        ResultsTable(path).append(named(f"writer{writer}-run{number}"))


def test_several_processes_append_at_once(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, writer, 20)) for writer in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(60)
        assert process.exitcode == 0
    rows = ResultsTable(path).read()
    assert sorted(row.run for row in rows) == sorted(f"writer{w}-run{n}" for w in range(4) for n in range(20))
    assert all(math.isnan(row.max_violation) for row in rows)
