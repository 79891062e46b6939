"""The command that checks one run: every question of its file answered, the small model tried, the whole counted."""

from __future__ import annotations

import runpy
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from training_cases import MODEL, training

from toolkit.compute import cost, memory
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, MoEConfig
from toolkit.training.check.__main__ import main, read_settings

LAYER = BlockConfig(AttentionConfig(heads=4, pattern="Causal() & SlidingWindow(8)"), MoEConfig(64, 4, 2))
LARGE = DecoderConfig(256, 64, (LAYER,) * 4)
QUESTIONS = ["loss", "gradients", "loading", "validation", "masks", "memory", "tokens"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("texts")
    for name in range(12):
        (folder / f"{name}.txt").write_text(f"file {name}: " + " ".join(f"word{name * i % 7}" for i in range(400)))
    return str(folder)


def asked(texts: str, folder: Path, model: DecoderConfig = LARGE, *others: str, **changes: object) -> list[str]:
    config = training(steps=2000, batch_size=8, learning_rate=1e-2)
    values = {"model": model.to_dict(), "training": asdict(config), "data": {"paths": [texts], "validation_share": 0.3}}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**values, "validation_windows": 8, "parallel": {"accelerator": "cpu"}, **changes}))
    settings = {"--cache": folder / "cache", "--trial-steps": 30, "--trials": 2, "--effect": 5, "--small-dim": 16}
    return [str(path), *(str(word) for pair in settings.items() for word in pair), *others]


def test_every_question_is_answered_with_a_figure(
    texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trial of a quarter of the width and half of the layers; memory and tokens are those of the whole model."""
    main(asked(texts, tmp_path))
    first, *lines = capsys.readouterr().out.splitlines()
    assert "(width 16 of 64, 2 of 4 layers), 8 of 8 sequences a step, 30 of 2000 steps, on the CPU" in first
    assert [line[6:].split(":")[0] for line in lines] == QUESTIONS
    assert all(line[:4].strip() in ("pass", "warn") for line in lines), lines
    whole = memory(LARGE, 8, 32).training / 1e9
    assert f"memory: {whole:.3g} GB of 80 in 32-true" in lines[-2]
    assert f"for {cost(LARGE, 32).total_active_parameters:.3g} active parameters" in lines[-1]


def test_a_mask_that_leaks_ends_with_1(texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaking = replace(LAYER, attention=replace(LAYER.attention, pattern="Full()"))
    with pytest.raises(SystemExit) as ended:
        main(asked(texts, tmp_path, replace(LARGE, blocks=(LAYER, leaking))))
    assert ended.value.code == 1
    assert "fail  masks: " in capsys.readouterr().out


def test_the_trial_says_what_it_leaves_out(texts: str, tmp_path: Path) -> None:
    others = {"initial": "0" * 64, "mixture": {"task": "Copy()"}}
    check = read_settings(asked(texts, tmp_path, LARGE, "--small-batch", "2", **others))
    assert check.describe().endswith(
        "2 of 8 sequences a step, 30 of 2000 steps, on the CPU, from random weights where the run has others, "
        "on text where the run mixes a task in"
    )
    flops = [cost(model, 32).training_flops["exact"] for model in (LARGE, check.model)]
    assert check.compute_ratio == flops[0] / flops[1] > 1


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["--trials", "1"], "trials=1: it must be 2 or more"),
        (["--small-batch", "9"], "small_batch=9: it must be 1 to the run's 8"),
        (["--small-dim", "0"], "dim=0: it must be positive"),
        (["--seeds", "0"], "seeds=0: it must be positive"),
        (["--sedes", "3"], "setting='--sedes': it must be --model or"),
        (["--effect", "small"], "invalid float value: 'small'"),
    ],
)
def test_bad_settings_are_refused(others: list[str], message: str, texts: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_settings(asked(texts, tmp_path, MODEL, *others))


def test_a_refusal_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["check", str(tmp_path)])
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it has been imported above
        runpy.run_module("toolkit.training.check", run_name="__main__")
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: settings=")
    assert message.count("\n") == 1
