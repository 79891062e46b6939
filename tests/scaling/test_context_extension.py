"""The experiment as a command: cut off anywhere and gone on with, it leaves the table and report of an unbroken one."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from experiment_script import ROOT, load_script, write_text

from toolkit.scaling.cli import run_experiment
from toolkit.scaling.extension import study as extension_study
from toolkit.scaling.extension.cli import read_extension

PRESETS = ROOT / "experiments" / "presets" / "extension"
BY_CLOCK = {"training_seconds", "evaluation_seconds", "load_average"}
pytestmark = pytest.mark.usefixtures("process_as_it_was")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("context_extension")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The smoke preset on a small text of our own."""
    folder = write_text(tmp_path_factory.mktemp("text"))
    settings = {
        "preset": "smoke",
        "corpus.paths": f"[{folder}]",
        "corpus.validation_share": "0.3",
        "evaluation.min_bytes": "1000",
        "extension.methods": "[none, dynamic-ntk]",
        "cache": str(folder.parent / "cache"),
        "accelerator": "cpu",
    }
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["metric"] not in BY_CLOCK]


def test_cut_off_and_gone_on_with_it_is_the_same_study(
    script: ModuleType, smoke: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    script.main([*smoke, "--out", str(whole)])
    evaluate, calls = extension_study.evaluate, []

    def cut_off(*arguments: Any) -> Any:
        calls.append(arguments[1])
        if len(calls) in (2, 10):
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(extension_study, "evaluate", cut_off)
    for _ in range(2):  # as is; and after the first fine-tune
        with pytest.raises(KeyboardInterrupt):
            script.main([*smoke, "--out", str(broken)])
    assert not (broken / "report.md").exists()
    script.main([*smoke, "--out", str(broken)])
    assert len(calls) == 2 * 2 * 3 + 2  # methods x stages x lengths, and the two that were cut off
    assert table(broken) == table(whole)
    for name in ("loss_by_position.png", "passkeys.png", "report.md", "report.html"):
        assert (broken / name).exists()
    assert len(list((whole / "board").iterdir())) == 5
    spent = {
        row["method"]: row["value"]
        for row in table(whole)
        if (row["stage"], row["metric"]) == ("tuned", "training_flops")
    }
    assert set(spent) == {"none", "dynamic-ntk"}
    assert len(set(spent.values())) == 1


def test_a_dry_run_prints_the_plan_and_leaves_nothing(
    script: ModuleType, smoke: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main([*smoke, "--out", str(tmp_path / "study"), "--dry-run"])
    output = capsys.readouterr().out
    for name in ("base-seed0", "none-seed0", "dynamic-ntk-seed0", "FLOPs of training"):
        assert name in output
    assert not (tmp_path / "study").exists()


def test_another_study_s_folder_is_refused(
    script: ModuleType, smoke: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, _ = read_extension([*smoke, "--out", str(tmp_path)], PRESETS, "", tmp_path)
    study.claim_folder()
    other, _ = read_extension([*smoke, "--out", str(tmp_path), "--training.steps", "13"], PRESETS, "", tmp_path)
    with pytest.raises(ValueError, match="another folder: this one holds a study with other settings"):
        other.claim_folder()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--extension.methods [yarn]", "with 'none' among them"),
        ("--extension.multipels [1,2]", "did you mean extension.multiples?"),
        ("--evaluation.blocks 10000", "evaluation.blocks=10000: it must be at most"),
        ("--preset nope", "preset='nope': it must be one of 'gpu', 'laptop', 'smoke'"),
    ],
)
def test_a_refusal_is_one_line(
    script: ModuleType, smoke: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], arguments: str, message: str,
) -> None:  # fmt: skip
    out = tmp_path / "study"
    monkeypatch.setattr(sys, "argv", ["context_extension.py", *smoke, "--out", str(out), *arguments.split()])
    with pytest.raises(SystemExit) as end:
        run_experiment(script.main)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not out.exists()


@pytest.mark.parametrize("preset", ["laptop", "gpu", "smoke"])
def test_every_preset_is_understood(preset: str, tmp_path: Path) -> None:
    study, dry_run = read_extension(["--preset", preset, "--accelerator", "cpu"], PRESETS, "", tmp_path)
    assert not dry_run
    assert study.folder.path == tmp_path / preset
    assert study.lengths[0] == study.training.context
    vocab_size = study.corpus.vocab_size + 100
    assert json.dumps(study.model.decoder(vocab_size).to_dict())
