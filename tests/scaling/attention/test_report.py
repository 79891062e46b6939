"""The attention report as a file: both measures side by side by context, tables whole, every figure names its runs."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from scipy import stats
from synthetic_study import run_result

from toolkit.scaling import RunResult, StudyDescription
from toolkit.scaling.attention.arms import AttentionArm, AttentionArms
from toolkit.scaling.attention.report import write_attention_report

ARMS = (
    AttentionArm("window", ("Causal() & SlidingWindow(4)",) * 2 + ("Causal()",), about="near"),
    AttentionArm("hubs", ("Causal() & (SlidingWindow(4) | {globals})",), global_every=8),
)
SHAPES = {context: AttentionArms(ARMS, context, layers=3, head_dim=8) for context in (16, 32)}
FAMILIES = SHAPES[16].families
STUDY = StudyDescription(
    title="Attention", question="Which?", config="a: 1\n", corpus=("made up",), machine="none", precision="32-true",
    conventions=(), seconds_source="imagined", command="python study.py",
    planned_runs=("context32/full-dim24-flops1e10-seed9",),
)  # fmt: skip
NOISE = (0.0, 0.04, -0.01)
TIME = 10.0


def law(family: str, seed: int, seconds: float) -> float:
    """Bits per byte = level * (seconds / 10) ** -0.1: full attention is better than a window, and worse than hubs."""
    level = {"full": 2.5, "window": 2.6, "hubs": 2.4}[family.split("-", maxsplit=1)[0]]
    return (level + NOISE[seed] + (0.003 * seed if family != "full" else 0)) * (seconds / TIME) ** -0.1


def rows(context: int, budgets: tuple[float, ...] = (1e10, 4e9)) -> list[RunResult]:
    """Windows are twice as slow for each FLOP, hubs as fast; full attention has the first budget alone."""
    made = []
    for budget in budgets:
        for family in FAMILIES:
            if family == "full" and budget != budgets[0]:
                continue
            seconds = TIME * budget / budgets[0] * (2 if family.startswith("window") else 1)
            for seed in range(3):
                loss = law(family, seed, seconds) + context / 1000
                made.append(run_result(family, budget, 24, seed, loss, seconds=seconds))
    return made


def write(folder: Path, budgets: tuple[float, ...] = (1e10, 4e9)) -> str:
    path = write_attention_report(folder, {context: rows(context, budgets) for context in SHAPES}, SHAPES, STUDY, 64)
    assert path == folder / "report.md"
    return path.read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a report with both budgets."""
    folder = tmp_path_factory.mktemp("study")
    write(folder)
    return folder


def test_the_page_has_the_report_and_its_figures(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/png') == text.count("![") > 0
    assert f"<title>{STUDY.title}</title>" in page
    assert text.count(f"Drawn by `{STUDY.command}`") == text.count("![")


@pytest.fixture(scope="module")
def report(folder: Path) -> str:
    return (folder / "report.md").read_text()


def section(text: str, title: str) -> str:
    return text.split(f"\n{title}\n")[1].split("\n##", maxsplit=1)[0]


def cells(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def paired(losses: list[float], full: list[float]) -> str:
    interval = stats.ttest_rel(losses, full).confidence_interval()
    return f"{(interval.low + interval.high) / 2:+.3f} (± {(interval.high - interval.low) / 2:.3f})"


@pytest.mark.parametrize("context", [16, 32])
def test_equal_flops_and_equal_seconds_stand_side_by_side(report: str, context: int) -> None:
    text = section(report, f"### Context {context}, 1e10 FLOPs, dim 24")
    full = [law("full", seed, TIME) + context / 1000 for seed in range(3)]
    window = cells(text, "window-tokens")
    flops = [law("window", seed, 2 * TIME) + context / 1000 for seed in range(3)]
    assert window[5] == paired(flops, full)
    assert window[8] == "2.00"
    small, large = ([law("window", seed, s) + context / 1000 for seed in range(3)] for s in (0.8 * TIME, 2 * TIME))
    share = math.log(1 / 0.8) / math.log(2 / 0.8)  # of the way, in log seconds
    timed = [a ** (1 - share) * b**share for a, b in zip(small, large, strict=True)]
    assert window[10] == paired(timed, full)
    assert window[11] == "worse"
    hubs = cells(text, "hubs-size")
    assert (hubs[6], hubs[11]) == ("better", "better")
    assert hubs[5] == hubs[10]  # as fast for each FLOP as full attention
    assert cells(text, "full")[6] == "the baseline"


def test_the_table_of_contexts_has_both_measures_of_every_family(report: str) -> None:
    table = section(report, "## At 1e10 FLOPs, dim 24")
    for family in FAMILIES[1:]:
        for place, context in enumerate(SHAPES):
            detail = cells(section(report, f"### Context {context}, 1e10 FLOPs, dim 24"), family)
            assert cells(table, family)[1 + place] == detail[5]
            assert cells(table, family)[3 + place] == detail[10]
    assert cells(table, "full")[1:] == ["2.526", "2.542"] * 2


def test_a_time_beyond_the_runs_is_marked_and_one_budget_gives_none(tmp_path: Path) -> None:
    text = section(write(tmp_path / "beyond", (1e10, 8e9)), "### Context 16, 1e10 FLOPs, dim 24")
    assert cells(text, "window-tokens")[11] == "extrapolated"
    assert cells(text, "hubs-tokens")[11] == "better"
    judged, apart = text.split("**At equal seconds**")[1].split("\n- Not judged")
    assert "`window-tokens`" in apart.splitlines()[0]
    assert "`window" not in judged
    text = section(write(tmp_path / "one", (1e10,)), "### Context 16, 1e10 FLOPs, dim 24")
    assert cells(text, "window-tokens")[9:] == ["", "", "unknown: one budget"]
    assert "- Unknown, with runs of one budget: `window-tokens` and `window-size`." in text


def test_findings_are_drawn_from_each_measure(report: str) -> None:
    text = section(report, "### Context 16, 1e10 FLOPs, dim 24")
    flops, seconds = text.split("**At equal seconds**, 10.0 s of steps.")
    for part in (flops, seconds):
        assert re.search(r"Below `full`: .*`hubs-tokens` \(-0\.\d+\) and `hubs-size`", part)
        assert "after Holm's correction" in part
    assert "Below `full`: `window-tokens`" in flops
    assert "Above `full`: `window-tokens`" in seconds


def test_the_figure_is_there_and_names_its_runs(folder: Path, report: str) -> None:
    text = section(report, "## Figures")
    (name,) = re.findall(r"\]\((.*\.png)\)", text)
    assert (folder / name).stat().st_size > 1000
    for family in FAMILIES:
        for context in SHAPES:
            assert f"`context{context}/{family}-dim24-flops1e+10-seed0`" in text


def test_what_was_compared_how_and_what_is_missing_is_told(report: str) -> None:
    arms = section(report, "## The arms")
    assert "2 x `Causal() & SlidingWindow(4)`, 1 x `Causal()`" in arms
    assert "GlobalTokens(one in 8)" in arms
    sizes = arms.split("by context:")[1]
    assert cells(sizes, "full")[1:] == ["1.000 (24, 96)"] * 2
    assert all(abs(float(cell.split()[0]) - 1) <= 0.01 for cell in cells(sizes, "window-size")[1:])
    assert "`context32/full-dim24-flops1e10-seed9`" in section(report, "## What this cannot claim")
    for context in SHAPES:
        listed = section(report, f"## Every run at context {context}")
        assert all(f"| `context{context}/{row.run}` |" in listed for row in rows(context))
    assert "imagined" in section(report, "## The study")


def test_tables_are_rectangular(report: str) -> None:
    blocks = [block.splitlines() for block in report.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 7
    for block in blocks:
        assert len({line.replace("\\|", "").count("|") for line in block}) == 1


def test_no_finite_loss_is_refused(tmp_path: Path) -> None:
    diverged = [run_result("full", 1e10, 24, 0, float("nan"))]
    with pytest.raises(ValueError, match="rows='1 runs': it must be at least one finished run"):
        write_attention_report(tmp_path, {16: diverged}, SHAPES, STUDY, 64)
    assert list(tmp_path.iterdir()) == []
