"""The experiment as a command: cut off and gone on with, it leaves the table and report of an unbroken one."""

from __future__ import annotations

import csv
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from experiment_script import load_script, write_text

from toolkit.scaling import sweep
from toolkit.scaling.cli import read_study
from toolkit.scaling.routing.arms import RoutingArms

BY_CLOCK = {"seconds", "seconds_wall"}
pytestmark = pytest.mark.usefixtures("process_as_it_was")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("routing_ablation")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The demo made small: three arms, one of them not causal, two seeds, some 60 steps."""
    folder = write_text(tmp_path_factory.mktemp("text"))
    settings = {
        "corpus.paths": f"[{folder}]",
        "corpus.validation_share": "0.3",
        "cache": str(folder.parent / "cache"),
        "training.context": "32",
        "training.batch_size": "4",
        "validation_windows": "20",
        "grid.budgets": "[{flops: 6e8, dims: [16]}]",
        "grid.families": "[aux, capacity-position, expert-choice-by-choice]",
        "grid.seeds": "2",
        "workers": "1",
    }
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return [{name: value for name, value in row.items() if name not in BY_CLOCK} for row in csv.DictReader(file)]


def test_cut_off_and_gone_on_with_it_is_the_same_study(
    script: ModuleType, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    script.main([*small, "--out", str(whole)])
    train, trained = sweep.train_one, []

    def cut_off(run: Any, *arguments: Any) -> Any:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(run.name)
        return train(run, *arguments)

    monkeypatch.setattr(sweep, "train_one", cut_off)
    with pytest.raises(KeyboardInterrupt):
        script.main([*small, "--out", str(broken)])
    assert not (broken / "report.md").exists()
    monkeypatch.setattr(sweep, "train_one", train)
    script.main([*small, "--out", str(broken)])
    assert table(broken) == table(whole)
    assert len(table(whole)) == 6
    report = (whole / "report.md").read_text()
    causal, apart = report.split("\n## Not causal")
    assert "| `expert-choice-by-choice` |" not in causal.split("\n## The arms")[0]
    assert "| `expert-choice-by-choice` |" in apart
    assert any("%" in line for line in causal.splitlines() if line.startswith("| `capacity-position` |"))
    assert {path.name for path in whole.glob("*.png")} == {"losses-dim16-flops6e8.png", "balance-dim16-flops6e8.png"}


def test_a_dry_run_leaves_nothing(
    script: ModuleType, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main([*small, "--out", str(tmp_path / "study"), "--dry-run"])
    assert "6 runs on" in capsys.readouterr().out
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--grid.families", "[auks]"), "families='auks': it must be among dense, aux, unbalanced"),
        (("--model.baseline", "auks"), "baseline='auks': it must be one of dense, aux"),
        (
            ("--model.arms", "[{name: a, router: TopKRooter()}]", "--model.baseline", "a"),
            "nothing is called TopKRooter",
        ),
        (("--preset", "gpu"), "preset='gpu': it must be one of 'demo', 'laptop'"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_trained(
    script: ModuleType, small: list[str], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    families = small.index("--grid.families")
    rest = small[:families] + small[families + 2 :]
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        script.main([*rest, *arguments, "--out", str(tmp_path / "study")])
    assert not (tmp_path / "study").exists()


def test_overrides_reach_the_arms(script: ModuleType) -> None:
    more = ["--model.layers", "3", "--model.arms", "[{name: a, top_k: 3}]", "--model.baseline", "a"]
    study, _ = read_study(more, script.PRESETS, "", RoutingArms, script.STUDIES)
    assert isinstance(study.shape, RoutingArms)
    assert study.shape.families == ("dense", "a")
    assert len(study.shape.decoder("a", 24, 256).blocks) == 3
    assert study.folder.path == Path("runs") / "routing" / "demo"
