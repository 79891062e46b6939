"""``experiments/train.py``: one run by its settings' file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from experiment_script import ROOT, load_script, write_text

SETTINGS = yaml.safe_load((ROOT / "experiments" / "presets" / "run" / "moe.yaml").read_text())
SMALL = {"model.dim": "16", "training.steps": "3", "training.context": "32", "training.batch_size": "2"}
SMALL |= {"validation_windows": "4", "parallel.accelerator": "cpu"}


def words(folder: Path, **changes: str) -> list[str]:
    (folder / "text").mkdir(exist_ok=True)
    settings = {**SETTINGS, "model": {**SETTINGS["model"], "blocks": SETTINGS["model"]["blocks"][:1]}}
    (folder / "one.yaml").write_text(yaml.safe_dump(settings))
    given = {**SMALL, "data.paths": f"[{write_text(folder / 'text')}]", "data.validation_share": "0.4", **changes}
    places = [str(folder / "one.yaml"), "--out", str(folder / "run"), "--cache", str(folder / "cache")]
    return [*places, *(word for name, value in given.items() for word in (f"--{name}", value))]


def test_a_run_is_trained_goes_on_where_it_stands_and_can_be_had_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = load_script("train").main
    main(words(tmp_path))
    first = capsys.readouterr().out
    assert first.startswith("3 steps, ")
    assert first.rstrip().endswith(str(tmp_path / "run"))
    main(words(tmp_path))  # it is done: nothing is left to train
    assert capsys.readouterr().out == first
    again = [str(tmp_path / "run"), "--out", str(tmp_path / "again"), "--cache", str(tmp_path / "cache")]
    main(again)  # from what the first run's folder says
    assert capsys.readouterr().out.split(":")[0] == first.split(":")[0]
    one, other = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("run", "again"))
    assert one == {**other, "training": one["training"]}
    assert {**one["training"], "precision": ""} == {**other["training"], "precision": ""}


def test_what_a_run_cannot_be_trained_by_is_refused(tmp_path: Path) -> None:
    main = load_script("train").main
    with pytest.raises(ValueError, match="settings=.'modell'.: it must be of model|setting='--modell.dim'"):
        main(words(tmp_path, **{"modell.dim": "8"}))
    settings = yaml.safe_load((tmp_path / "one.yaml").read_text())
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({**settings, "initial": "0" * 64}))
    with pytest.raises(ValueError, match="initial='weights': it must be none"):
        main([str(tmp_path / "one.yaml"), "--out", str(tmp_path / "run")])
