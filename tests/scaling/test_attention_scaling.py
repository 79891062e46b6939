"""The experiment as a command: a study for each context on the same scored text, cut off and gone on with as one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from experiment_script import load_script, write_text

from toolkit.data import validation_windows
from toolkit.scaling import sweep
from toolkit.scaling.attention.arms import AttentionArms
from toolkit.scaling.attention.contexts import ContextStudies, read_context_studies

BY_CLOCK = {"seconds", "seconds_wall"}
pytestmark = pytest.mark.usefixtures("process_as_it_was")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("attention_scaling")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The demo made small: full attention and one arm both ways, two contexts, two budgets for the arm."""
    folder = write_text(tmp_path_factory.mktemp("text"))
    arms = "[sliding-tokens, sliding-size]"
    settings = {
        "corpus.paths": f"[{folder}]",
        "corpus.validation_share": "0.3",
        "cache": str(folder.parent / "cache"),
        "contexts": "[64, 32]",
        "training.context": "64",
        "training.batch_size": "1",
        "training.precision": "32-true",
        "validation_windows": "12",
        "model.layers": "2",
        "model.head_dim": "8",
        "model.arms": "[{name: sliding, patterns: ['Causal() & SlidingWindow(8)']}]",
        "grid.budgets": f"[{{flops: 3.48e8, dims: [16]}}, {{flops: 2.55e8, dims: [16], families: {arms}}}]",
        "grid.seeds": "1",
        "workers": "1",
    }
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def read(script: ModuleType, arguments: list[str]) -> ContextStudies:
    return read_context_studies(arguments, script.PRESETS, "", AttentionArms, script.STUDIES)[0]


def tables(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {
        path.parent.name: [
            {name: value for name, value in row.items() if name not in BY_CLOCK}
            for row in csv.DictReader(path.read_text().splitlines())
        ]
        for path in sorted(folder.glob("*/results.csv"))
    }


def test_cut_off_and_gone_on_with_it_is_the_same_study(
    script: ModuleType, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    script.main([*small, "--out", str(whole)])
    train = sweep.train_one
    trained: list[str] = []

    def cut_off(run: Any, *arguments: Any) -> Any:
        if len(trained) == 7:  # two runs into the second context
            raise KeyboardInterrupt
        trained.append(run.name)
        return train(run, *arguments)

    monkeypatch.setattr(sweep, "train_one", cut_off)
    with pytest.raises(KeyboardInterrupt):
        script.main([*small, "--out", str(broken)])
    assert not (broken / "report.md").exists()
    monkeypatch.setattr(sweep, "train_one", train)
    script.main([*small, "--out", str(broken)])
    assert tables(broken) == tables(whole)
    assert {name: len(rows) for name, rows in tables(whole).items()} == {"context32": 5, "context64": 5}
    report = (whole / "report.md").read_text()
    assert "### Context 32, 3.48e8 FLOPs, dim 16" in report
    assert "**At equal seconds**" in report
    assert "the same 768 tokens" in report
    assert {path.name for path in whole.glob("*.png")} == {"contexts-dim16-flops3.48e8.png"}
    run = json.loads((whole / "context32" / "runs" / "full-dim16-flops3.48e8-seed0" / "run.json").read_text())
    assert (run["training"]["context"], run["training"]["batch_size"], run["validation_windows"]) == (32, 2, 24)


def test_every_context_is_scored_on_the_same_tokens_with_steps_as_large(script: ModuleType, small: list[str]) -> None:
    scored, steps = [], set()
    for context, study in read(script, small).by_context.items():
        assert isinstance(study.shape, AttentionArms)
        assert study.shape.context == study.training.context == context
        block = study.training.validation_block
        windows = validation_windows(study.prepared.validation, context, study.validation_windows, block)
        scored.append(windows[:, 1:].flatten())
        steps.add(study.training.tokens_per_step)
    assert torch.equal(*scored)
    assert steps == {64}


def test_a_dry_run_prints_every_context_s_plan_and_leaves_nothing(
    script: ModuleType, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main([*small, "--out", str(tmp_path / "study"), "--dry-run"])
    assert capsys.readouterr().out.count("5 runs on") == 2
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--contexts", "[48]"), "contexts=48: it must be a divisor of training.context=64"),
        (("--contexts", "[128]"), "contexts=128: it must be a divisor of training.context=64"),
        (("--contexts", "[32, 32]"), r"contexts=\[32, 32\]: it must be named once each"),
        (("--training.validation_block", "128"), "validation_block=128: it must be None, or training.context=64"),
        (("--grid.budgets", "[{flops: 1e9, dims: [16], families: [slidin]}]"), "families='slidin': it must be among"),
        (("--model.context", "32"), "model.context"),
        (("--validation_windows", "9999"), "validation_windows=19998: it must be at most"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_trained(
    script: ModuleType, small: list[str], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        script.main([*small, *arguments, "--out", str(tmp_path / "study")])
    assert not (tmp_path / "study").exists()


def test_without_contexts_there_is_the_longest_alone(script: ModuleType, small: list[str]) -> None:
    studies = read(script, [*small, "--contexts", "[]"])
    assert list(studies.by_context) == [64]
    assert studies.by_context[64].folder.path == Path("runs") / "attention" / "demo" / "context64"
