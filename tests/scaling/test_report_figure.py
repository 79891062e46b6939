"""Every figure says which command and which runs are behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.scaling.report_figure import INLINE_RUNS, ReportFigure

PLAIN = ReportFigure(Path("a.png"), "What is drawn.")


@pytest.mark.parametrize("count", [1, INLINE_RUNS, INLINE_RUNS + 1, 200])
def test_all_runs_and_the_command_are_named(count: int) -> None:
    runs = [f"run{at}" for at in range(count)]
    text = PLAIN.backed(command="python study.py", runs=runs).described()
    assert text.startswith("*What is drawn.*\n\n")
    assert "`python study.py`" in text
    assert all(f"`{run}`" in text for run in runs)
    assert ("<details>" in text) == (count > INLINE_RUNS)
    assert count <= INLINE_RUNS or f"{count} runs behind it</summary>" in text


def test_without_a_source_there_is_the_caption_alone() -> None:
    assert PLAIN.described() == "*What is drawn.*"
    assert PLAIN.backed(command="make").described().endswith("Drawn by `make`.</small>")


def test_what_is_not_given_stays() -> None:
    backed = PLAIN.backed(runs=["a"]).backed(command="c").backed(interactive={"data": []})
    assert (backed.runs, backed.command, backed.interactive) == (("a",), "c", {"data": []})
    assert backed.backed() == backed
    assert (PLAIN.runs, PLAIN.command) == ((), "")
