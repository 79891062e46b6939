"""The printed plan says what each run is and costs, what all of them do, and what is short."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from toolkit.scaling import Grid, IsoFLOP, Study, machine
from toolkit.scaling.plan import grid_warnings
from toolkit.scaling.plan_table import print_plan
from toolkit.scaling.study import largest_step

pytestmark = pytest.mark.usefixtures("untimed")


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_plan_as_printed(small: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    console = Console(file=io.StringIO(), width=200)
    print_plan(small, console, small.seconds)
    output = printed(console)
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in output.splitlines() if "seed" in line}
    assert list(rows) == [run.name for run in small.runs]
    for run in small.runs:
        values = [value.strip() for value in rows[run.name]]
        seconds = run.training.steps * (0.5 if run.family == "dense" else 1.0)
        assert values == [
            f"{run.cost.total_parameters:,}",
            f"{run.cost.total_active_parameters:,}",
            "1",
            f"{run.tokens:,}",
            f"{run.tokens / len(small.prepared.train):.2f}",
            f"{run.training.steps:,}",
            "4",
            f"{0.4 / run.dim:.2g}",
            "0.1",
            f"{run.flops['exact']:.3g}".replace("e+0", "e"),
            f"{run.flops['exact'] / run.budget:.4f}",
            f"{run.memory().training / 1e6:.0f}",
            f"{seconds:.0f}",
        ]
    total = sum(run.training.steps * small.seconds[run.name] for run in small.runs)
    flops = sum(run.flops["exact"] for run in small.runs)
    assert f"{flops:.3g} FLOPs in all; training takes about {total / 2 / 60:.1f} minutes with 2 runs at once" in output
    assert f"({total / 60:.1f} one by one" in output
    notes = [line for line in output.splitlines() if line.startswith("note:")]
    assert notes == [f"note: {line}" for line in grid_warnings(small.runs)]
    assert "2 of dense, 2 of moe" in notes[0]


def test_where_no_step_was_tried_out_the_time_is_unknown(small: Study) -> None:
    console = Console(file=io.StringIO(), width=200)
    print_plan(small, console, {})
    output = printed(console)
    assert [line.split("│")[-2].strip() for line in output.splitlines() if "seed" in line] == ["?"] * len(small.runs)
    assert f"time unknown: a step takes up to {largest_step(small.runs):.1e} FLOPs" in output


def test_a_plan_that_needs_more_text_than_there_is_says_so(small: Study) -> None:
    long = replace(small, grid=Grid((IsoFLOP(2e10, (16,)),), families=("dense",), seeds=1))
    console = Console(file=io.StringIO(), width=200)
    print_plan(long, console, long.seconds)
    assert f"note: budget 2e10 needs {long.runs[0].tokens:,} tokens but" in printed(console)
