"""What the README shows runs as it is written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = re.findall(r"^python (experiments/\S+\.py)(?: --preset (\w+))?", README, flags=re.MULTILINE)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_run_and_import_nothing_heavy(snippet: str) -> None:
    check = "\nimport sys\nassert not {'lightning', 'tensorboard', 'matplotlib', 'transformers'} & set(sys.modules)\n"
    ended = subprocess.run(
        [sys.executable, "-c", snippet + check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_there_are_snippets_and_commands_to_check() -> None:
    assert len(SNIPPETS) == 3
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize(("script", "preset"), COMMANDS)
def test_commands_name_files_that_exist(script: str, preset: str) -> None:
    assert (ROOT / script).is_file()
    assert not preset or (ROOT / "experiments" / "presets" / f"{preset}.yaml").is_file()


def test_the_demo_s_table_is_the_report_s() -> None:
    report = (ROOT / "docs" / "demo" / "report.md").read_text()
    rows = [line for line in README.splitlines() if line.startswith("| `moe")]
    assert len(rows) == 4
    assert all(row in report.splitlines() for row in rows)


def test_the_demo_trains_as_many_models_as_is_said() -> None:
    demo = yaml.safe_load((ROOT / "experiments" / "presets" / "demo.yaml").read_text())
    families = [arm["name"] for arm in demo["model"]["arms"]]
    cells = sum(len(budget["dims"]) * len(budget.get("families", families)) for budget in demo["grid"]["budgets"])
    runs = cells * demo["grid"]["seeds"]
    assert f"trains {runs} tiny models" in README
    assert len((ROOT / "docs" / "demo" / "results.csv").read_text().splitlines()) == runs + 1


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z-]+)", README))))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
