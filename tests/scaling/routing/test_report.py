"""The routing report as a file: what is not causal stands apart, tables are whole, every figure names its runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scipy import stats
from synthetic_study import run_result

from toolkit.scaling import RunResult, StudyDescription
from toolkit.scaling.course import RouterCourse
from toolkit.scaling.routing.arms import Arm, RoutingArms
from toolkit.scaling.routing.report import write_routing_report

SHAPE = RoutingArms(
    (Arm("aux", about="the default"), Arm("bias", router="TopKRouter()"), Arm("leak", causal=False)), baseline="aux"
)
LOSSES = {
    "dense": (2.70, 2.74, 2.69),
    "aux": (2.60, 2.63, 2.60),
    "bias": (2.58, 2.60, 2.585),
    "leak": (1.10, 1.12, 1.11),
}
STUDY = StudyDescription(
    title="Routers", question="Which?", config="a: 1\n", corpus=("made up",), machine="none", precision="32-true",
    conventions=(), seconds_source="imagined", command="python study.py", planned_runs=("bias-dim24-flops1e10-seed9",),
)  # fmt: skip


def rows(budgets: tuple[float, ...] = (1e10,)) -> list[RunResult]:
    return [
        run_result(family, budget, 24, seed, loss)
        for budget in budgets
        for family, losses in LOSSES.items()
        for seed, loss in enumerate(losses)
    ]


def courses(of: list[RunResult]) -> dict[str, RouterCourse]:
    curves = {"max_violation": {250: 0.9, 500: 0.6, 1000: 0.3}, "dropped_share": {250: 0.2, 500: 0.1, 1000: 0.05}}
    whole = {**curves, "max_violation_validation": {1000: 0.25}, "token_entropy": {1000: 1.5}}
    return {row.run: RouterCourse(whole if row.family in ("aux", "bias") else {}) for row in of}


def write(folder: Path, of: list[RunResult], shape: RoutingArms = SHAPE) -> str:
    path = write_routing_report(folder, of, courses(of), shape, STUDY)
    assert path == folder / "report.md"
    return path.read_text()


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ", maxsplit=1)[0]


def cells(text: str, name: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_losses_differences_and_their_intervals_are_in_the_table(tmp_path: Path) -> None:
    text = section(write(tmp_path, rows()), "At 1e10 FLOPs, dim 24")
    loss = cells(text, "bias")[0]
    mean = stats.ttest_1samp(LOSSES["bias"], 0).confidence_interval()
    paired = stats.ttest_rel(LOSSES["bias"], LOSSES["aux"]).confidence_interval()
    assert loss[1] == f"{(mean.low + mean.high) / 2:.3f} (± {(mean.high - mean.low) / 2:.3f})"
    assert loss[2] == f"{(paired.low + paired.high) / 2:+.3f} (± {(paired.high - paired.low) / 2:.3f})"
    assert loss[3] == "better"
    assert cells(text, "dense")[0][3] == "worse"
    assert cells(text, "aux")[0][2:4] == ["", "the baseline"]
    assert loss[4:9] == ["3", "1,000", "10.0", "10.0", "1.00"]


def test_routing_is_shown_at_the_same_shares_of_the_schedule(tmp_path: Path) -> None:
    text = section(write(tmp_path, rows()), "At 1e10 FLOPs, dim 24")
    assert cells(text, "bias")[1][1:] == ["0.90", "0.60", "0.30", "0.25", "20.0%", "10.0%", "5.0%", "1.50"]
    assert len(cells(text, "dense")) == 1  # it has no router


def test_what_is_not_causal_stands_in_its_own_table_only(tmp_path: Path) -> None:
    text = write(tmp_path, rows())
    causal, apart = section(text, "At 1e10 FLOPs, dim 24"), section(text, "Not causal, at 1e10 FLOPs, dim 24")
    assert "leak" not in causal
    assert "1.110" not in causal
    assert "leak" not in section(text, "Figures")
    (leak,) = cells(apart, "leak")
    assert leak[2:4] == ["", "not causal"]
    assert leak[1].startswith("1.110")
    assert not any(cells(apart, name) for name in ("dense", "aux", "bias"))


def test_an_arm_that_is_causal_is_not_set_apart(tmp_path: Path) -> None:
    shape = RoutingArms(tuple(Arm(name) for name in ("aux", "bias", "leak")), baseline="aux")
    text = write(tmp_path, rows(), shape)
    assert "Not causal" not in text
    assert "lowest mean is that of `leak`" in text


def test_figures_are_there_and_name_their_runs(tmp_path: Path) -> None:
    text = section(write(tmp_path, rows()), "Figures")
    assert len(re.findall(r"!\[", text)) == 2
    for name in re.findall(r"\]\((.*\.png)\)", text):
        assert (tmp_path / name).stat().st_size > 1000
    losses, balance = (line for line in text.splitlines() if line.startswith("*"))
    for family in ("dense", "aux", "bias"):
        assert f"`{family}-dim24-flops1e+10-seed0`, 1, 2" in losses
        assert (f"`{family}-dim24-flops1e+10-seed0`, 1, 2" in balance) == (family != "dense")


def test_the_page_has_the_report_and_its_figures(tmp_path: Path) -> None:
    text = write(tmp_path, rows())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/png') == len(re.findall(r"!\[", text)) == 2
    assert f"<title>{STUDY.title}</title>" in page
    assert text.count(f"Drawn by `{STUDY.command}`") == 2


def test_every_budget_has_its_tables(tmp_path: Path) -> None:
    text = write(tmp_path, rows((1e10, 3e10)))
    for budget in ("1e10", "3e10"):
        assert len(cells(section(text, f"At {budget} FLOPs, dim 24"), "bias")) == 2
    assert len(re.findall(r"!\[", text)) == 4


def test_tables_are_rectangular(tmp_path: Path) -> None:
    text = write(tmp_path, rows())
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 5
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1


def test_all_runs_arms_limits_and_circumstances_are_told(tmp_path: Path) -> None:
    diverged = run_result("bias", 1e10, 24, 7, float("nan"))
    text = write(tmp_path, [*rows(), diverged])
    assert all(f"| `{row.run}` |" in section(text, "Every run") for row in rows())
    limits = section(text, "What this cannot claim")
    assert "`bias-dim24-flops1e10-seed9`" in limits
    assert f"`{diverged.run}`" in limits
    assert cells(section(text, "The arms"), "bias")[0][2] == "`TopKRouter()`"
    assert "imagined" in section(text, "The study")


def test_no_finite_loss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows='1 runs': it must be at least one finished run"):
        write(tmp_path, [run_result("aux", 1e10, 24, 0, float("nan"))])
    assert list(tmp_path.iterdir()) == []
