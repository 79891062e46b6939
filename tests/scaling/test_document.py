"""Markdown's forms: tables keep their columns, and large numbers are written as everywhere in a report."""

from __future__ import annotations

import re
from dataclasses import replace

from synthetic_study import run_result

from toolkit.scaling.document import markdown_table, runs_section


def test_a_bar_in_a_cell_is_escaped_once() -> None:
    text = markdown_table("a | b", [["x|y", r"`done \| before`"], ["`p | q`", "1"]])
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines()} == {3}
    assert text.count("\\|") == 3


def test_flops_are_written_in_one_form() -> None:
    row = replace(run_result("dense", 1e9, 32, 0, 2.0), flops_planned=1.0012e9, flops_spent=9.9876e8)
    [line] = [line for line in runs_section([row], "t.csv")[-1].splitlines() if "`dense`" in line]
    assert " 1.001e9 | 9.988e8 | 0.9976 " in line
    assert not re.search(r"e[+0]\d", line.replace(row.run, ""))
