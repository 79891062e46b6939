"""The figures that the README states are those of the reports; what it shows runs in ``tests/test_docs.py``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from documented import blocks_of
from documented_commands import ROOT

README = ROOT / "README.md"
HEAVY = {"lightning", "tensorboard", "matplotlib", "transformers", "plotly"}


def test_snippets_stand_alone_and_import_nothing_heavy() -> None:
    snippets = [block.text for block in blocks_of(README) if block.language == "python"]
    assert len(snippets) == 4
    alone = f"for snippet in {snippets!r}:\n    exec(snippet, {{'__name__': '__main__'}})\n"
    check = f"import sys\nassert not {HEAVY!r} & set(sys.modules)\n"
    command = [sys.executable, "-c", alone + check]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_study_s_figures_are_the_report_s() -> None:
    folder = ROOT / "docs" / "results" / "laptop"
    report = (folder / "report.md").read_text().splitlines()
    rows = [line for line in README.read_text().splitlines() if line.startswith("| `moe") and line.count("|") == 10]
    assert len(rows) == 9
    assert all(row in report for row in rows)
    runs = len((folder / "results.csv").read_text().splitlines()) - 1
    assert f"all {runs} runs" in README.read_text()
    predicted = [
        line.split(" | ") for line in README.read_text().splitlines() if line.startswith("| `") and line.count("|") == 8
    ]
    assert len(predicted) == 4
    for cells in predicted:
        name, number = cells[0].lstrip("| "), cells[3]
        assert any(line.startswith(f"| {name} | {cells[1]} |") and number in line for line in report)


def test_the_demo_trains_as_many_models_as_is_said() -> None:
    demo = yaml.safe_load((ROOT / "experiments" / "presets" / "demo.yaml").read_text())
    families = [arm["name"] for arm in demo["model"]["arms"]]
    grid = demo["grid"]
    cells = sum(len(budget["dims"]) * len(budget.get("families", families)) for budget in grid["budgets"])
    runs = cells * grid["seeds"]
    assert f"trains {runs} tiny models" in README.read_text()
    assert len((ROOT / "docs" / "demo" / "results.csv").read_text().splitlines()) == runs + 1
