"""The reach experiment as a command: cut off and gone on with it is the same study; the report says what rows say."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from experiment_script import load_script
from scipy import stats

from toolkit.scaling.reach import study as reach_study
from toolkit.scaling.reach.arms import ReachArm, ReachModel, arm_reach
from toolkit.scaling.reach.cli import read_reach
from toolkit.scaling.reach.report import accuracy_table, at_chance, findings
from toolkit.scaling.reach.table import ReachRow
from toolkit.scaling.row_table import RowTable

SMALL = [
    "--arms",
    "[{name: full, patterns: ['Causal()']}, {name: sliding, patterns: ['Causal() & SlidingWindow(3)']}, "
    "{name: moba, patterns: ['MoBA(block=4, top_k=2)']}]",
    *("--model.layers", "2", "--model.dim", "16", "--model.heads", "2", "--model.hidden_dim", "16"),
    *("--task.length", "14", "--task.distances", "[3, 4, 5, 6, 13]", "--task.rows", "20"),
    *("--training.batch_size", "2", "--flops", "6e7", "--seeds", "2"),
]
ROW = ReachRow("sliding", 0, 9, 0.125, 400, False, False, False, 100, 1e9, 1.0, 2.0)
pytestmark = pytest.mark.usefixtures("process_as_it_was")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("attention_reach")


class InThisProcess:
    """A pool of no processes, so that what a test replaces is seen."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None: ...

    def shutdown(self, **_: Any) -> None: ...

    def submit(self, function: Any, *arguments: Any) -> Any:
        from concurrent.futures import Future

        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def test_cut_off_and_gone_on_with_it_is_the_same_study(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach_study, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(reach_study, "as_completed", list)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    script.main([*SMALL, "--out", str(whole)])
    rows = RowTable(whole / "results.csv", ReachRow).read()
    assert {(row.pattern, row.seed) for row in rows} == {(n, s) for n in ("full", "sliding", "moba") for s in (0, 1)}
    assert all(abs(row.flops / 6e7 - 1) < 0.01 for row in rows)
    assert [row.reached for row in rows if (row.pattern, row.seed) == ("sliding", 0)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert [row.certain for row in rows if (row.pattern, row.seed) == ("moba", 0)][-1] is False
    study, _ = read_reach([*SMALL, "--out", str(broken)], script.PRESETS, "", script.STUDIES)
    study.folder.claim(study.settings)
    RowTable(broken / "results.csv", ReachRow).write([row for row in rows if row.seed == 0 and row.pattern != "moba"])
    trained: list[str] = []
    train = reach_study.train_and_ask
    monkeypatch.setattr(
        reach_study, "train_and_ask", lambda run, *others: (trained.append(run.name), train(run, *others))[1]
    )
    script.main([*SMALL, "--out", str(broken)])
    assert sorted(trained) == ["full-seed1", "moba-seed0", "moba-seed1", "sliding-seed1"]
    assert table(broken) == table(whole)
    report = (broken / "report.md").read_text()
    assert "| `sliding` | 4 |" in report
    assert re.search(r"Drawn by `python .*` from `full-seed0`", report)
    page = (broken / "report.html").read_text(encoding="utf-8")
    assert page.count('<script type="application/json">') == 1  # the interactive twin
    assert (broken / "reach.png").stat().st_size > 1000
    assert list((broken / "runs" / "moba-seed1").glob("events*"))


def test_a_dry_run_leaves_nothing(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main([*SMALL, "--out", str(tmp_path / "study"), "--dry-run"])
    assert "6 runs: 3 patterns" in capsys.readouterr().out
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arms", "[{name: a, patterns: ['Slidng(3)']}]"), "nothing is called Slidng"),
        (("--arms", "[{name: a, patterns: [Causal()]}, {name: a, patterns: [Causal()]}]"), "arms=.*name of its own"),
        (("--task.distances", "[40]"), "distance=40"),
        (("--flops", "3e6"), "flops=3000000.0: it must be within 1% of whole steps"),
        (("--preset", "desktop"), "preset='desktop'.*'laptop'"),
        (("--training.rate", "1"), "training.rate"),
    ],
)
def test_what_cannot_be_used_is_refused(script: ModuleType, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        script.main([*SMALL, *arguments, "--dry-run"])


@pytest.mark.parametrize("preset", ["laptop"])
def test_presets_are_plans_at_equal_flops(script: ModuleType, preset: str) -> None:
    study, _ = read_reach(["--preset", preset], script.PRESETS, "", script.STUDIES)
    for run in study.runs:
        assert study.spent(run) == pytest.approx(study.flops, rel=0.01)
    cuts = {arm.name: arm_reach(study.model, arm, study.task.length).cut for arm in study.arms}
    assert cuts["sliding"] == cuts["sliding-sinks"] == study.model.layers * 4
    assert cuts["full"] == cuts["sliding-last-full"] == cuts["sliding-globals"] == study.task.length - 1


def test_the_table_marks_what_is_beyond_reach() -> None:
    arm = ReachArm("sliding", ("Causal() & SlidingWindow(5)",))
    reached = {"sliding": arm_reach(ReachModel(), arm, 32)}
    seen = {"reached": True, "certain": True, "value_reached": True}
    rows = [
        replace(ROW, distance=12, accuracy=1.0, **seen),
        replace(ROW, distance=12, accuracy=0.5, seed=1, **seen),
        replace(ROW, distance=13, accuracy=0.4, value_reached=True),
        replace(ROW, distance=14),
    ]
    assert accuracy_table(rows, reached).splitlines()[-1] == "| `sliding` | 12 | 0.75 | (0.40) | [0.12] |"
    said = " ".join(findings(rows, reached, 0.125))
    assert "1 of 1 accuracies hold chance" in said
    assert "`sliding` (lowest 0.50)" in said
    assert "Not at chance" in " ".join(findings([replace(ROW, accuracy=0.5)], reached, 0.125))


@pytest.mark.parametrize(("right", "comparisons"), [(50, 1), (70, 1), (30, 10), (75, 10), (80, 10)])
def test_chance_is_held_against_an_exact_interval(right: int, comparisons: int) -> None:
    """The two-sided test by doubling the smaller tail, at the level shared among the comparisons."""
    row = replace(ROW, accuracy=right / 400)
    law = stats.binom(400, 0.125)
    p_value = min(1.0, 2 * min(law.cdf(right), law.sf(right - 1)))
    assert at_chance(row, 0.125, comparisons) == (p_value >= 0.01 / comparisons)
