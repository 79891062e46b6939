"""The command that checks a study's settings reads the studies' own YAML and answers every question."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.scaling.check import main, read_settings

YAML = """
corpus: {{paths: ["{text}"], validation_share: 0.3}}
grid:
  budgets: [{{flops: 2e9, dims: [16]}}]
  seeds: 2
model:
  layers: 2
  arms:
    - {{name: dense}}
    - {{name: moe, num_experts: 4, top_k: 2, patterns: ["{pattern}"]}}
training: {{context: 32, batch_size: 8, precision: 32-true}}
validation_windows: 8
"""


def written(folder: Path, pattern: str = "Causal() & SlidingWindow(8)") -> str:
    texts = folder / "text"
    texts.mkdir()
    for name in range(12):
        (texts / f"{name}.txt").write_text(f"file {name}: " + " ".join(f"word{name * i % 7}" for i in range(400)))
    path = folder / "mine.yaml"
    path.write_text(YAML.format(text=texts, pattern=pattern))
    return str(path)


def asked(path: str, folder: Path) -> list[str]:
    return [
        path,
        "--cache",
        str(folder / "cache"),
        "--out",
        str(folder / "out"),
        "--trial-steps",
        "30",
        "--effect",
        "5",
    ]


def test_every_question_is_answered_with_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(asked(written(tmp_path), tmp_path))
    lines = capsys.readouterr().out.splitlines()
    questions = ["loss", "gradients", "loading", "validation", "masks of dense", "masks of moe", "memory", "tokens"]
    assert sorted(line[6:].split(":")[0] for line in lines) == sorted(questions)
    assert all(line[:4].strip() in ("pass", "warn") for line in lines)
    assert not (tmp_path / "out").exists()


def test_a_study_whose_mask_leaks_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(asked(written(tmp_path, "Full()"), tmp_path))
    assert ended.value.code == 1
    assert "fail  masks of moe" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "settings='nowhere.yaml': it must be a YAML file"),
        ([], "the following arguments are required: settings"),
        (["{}", "--trials", "1"], "trials=1: it must be 2 or more"),
        (["{}", "--effect", "0"], "effect=0.0: it must be positive"),
        (["{}", "--grid.sedes", "3"], "did you mean grid.seeds"),
    ],
)
def test_bad_settings_are_refused_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(ValueError, match="^[^\n]*$") as caught:
        read_settings([each.format(path) for each in arguments])
    assert message in str(caught.value)
