"""A run's settings come back from the folder that ``fit`` wrote, and from a file of the same form."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from training_cases import MODEL, budget, corpus, training

from toolkit.compute import cost
from toolkit.data import CorpusConfig, prepare_corpus
from toolkit.parallel import ParallelConfig
from toolkit.training import fit
from toolkit.training.run_settings import RunSettings, changes_of, read_run_settings

TRAINING = training(steps=2, learning_rate=1e-5)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> CorpusConfig:
    folder = tmp_path_factory.mktemp("text")
    for name in range(12):
        (folder / f"{name}.txt").write_text(f"file {name}: " + " ".join(f"word{name * i % 7}" for i in range(400)))
    return CorpusConfig((str(folder),), validation_share=0.3)


def written(path: Path, **changes: Any) -> Path:
    values = {"model": MODEL.to_dict(), "training": asdict(TRAINING), **changes}
    path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
    return path


def test_a_runs_folder_tells_its_settings(text: CorpusConfig, tmp_path: Path) -> None:
    prepared = prepare_corpus(text, tmp_path / "cache")
    cpu = ParallelConfig(accelerator="cpu")
    fit(MODEL, TRAINING, prepared, tmp_path / "run", budget(TRAINING), parallel=cpu, validation_count=8)
    read = read_run_settings(tmp_path / "run")
    expected = RunSettings(MODEL, text, TRAINING, cpu, 8, budget(TRAINING), prepared.digest)
    assert read == expected
    assert read.corpus(tmp_path / "cache").digest == prepared.digest
    assert read == read_run_settings(tmp_path / "run" / "run.json")


def test_text_that_changed_since_is_refused(text: CorpusConfig, tmp_path: Path) -> None:
    read = read_run_settings(written(tmp_path / "a.yaml", data={"paths": list(text.paths)}, corpus="0" * 64))
    with pytest.raises(ValueError, match="data=.*it must be the run's text, of hash 000"):
        read.corpus(tmp_path / "cache")


def test_text_that_nobody_can_read_again_is_refused(tmp_path: Path) -> None:
    fit(MODEL, TRAINING, corpus(), tmp_path / "run", budget(TRAINING), validation_count=8)  # made by hand
    with pytest.raises(ValueError, match="data=None: it must be given in"):
        read_run_settings(tmp_path / "run")


def test_a_model_without_a_row_for_each_token_is_refused(text: CorpusConfig, tmp_path: Path) -> None:
    read = replace(RunSettings(MODEL, text, TRAINING), model=replace(MODEL, vocab_size=100))
    with pytest.raises(ValueError, match="vocab_size=100: it must be at least the tokenizer's 256"):
        read.corpus(tmp_path / "cache")


def test_numbers_are_those_of_yaml_1_2_and_precision_is_what_it_came_to(tmp_path: Path) -> None:
    path = written(tmp_path / "a.yaml", precision="bf16-mixed", training=None)
    path.write_text(path.read_text() + "training: {steps: 9, learning_rate: 1e-3, eps: 1E-8, precision: auto}\n")
    read = read_run_settings(path)
    assert read.training == replace(type(TRAINING)(9), learning_rate=1e-3, eps=1e-8, precision="bf16-mixed")
    assert read.data == CorpusConfig()


def test_a_budget_ends_the_tokens() -> None:
    """FLOPs of a token by the tokens is the budget; one beyond all steps changes nothing."""
    whole = TRAINING.steps * TRAINING.tokens_per_step
    flops = cost(MODEL, TRAINING.context).training_flops["exact"]
    made = RunSettings(MODEL, CorpusConfig(), TRAINING)
    assert made.tokens == replace(made, budget=2 * whole * flops).tokens == whole
    assert replace(made, budget=flops * whole / 4).tokens == pytest.approx(whole / 4)


BLOCK = MODEL.to_dict()["blocks"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "model=None: it must be given in"),
        ({"training": None}, "training=None: it must be given in"),
        ({"moddel": {}}, "settings=.'moddel'.: it must be of model, data"),
        ({"training": {"steps": 3, "stepps": 4}}, "training=.'stepps'.: it must be of steps, context"),
        ({"training": {"steps": "many"}}, "training=.*it must be a TrainingConfig's settings"),
        ({"training": {}}, "training=.*missing.*'steps'"),
        ({"training": [1]}, "training=.1.: it must be a mapping"),
        ({"training": {"steps": 0}}, "steps=0: it must be positive"),
        ({"model": 3}, "model=3: it must be a mapping"),
        ({"model": {"vocab_size": 9, "dim": 8, "blocks": [3]}}, "config=.*it must be what to_dict.. gives"),
        ({"model": {"vocab_size": 9, "dim": 8, "blocks": [{**BLOCK, "depht": 1}]}}, "unexpected keyword.*depht"),
        ({"parallel": {"devices": 3, "shard": 2}}, "shard 2 = 2, but 3 processes"),
        ({"validation_windows": 0}, "validation_windows=0: it must be positive"),
        ({"budget": -1.0}, "budget=-1.0: it must be positive"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_run_settings(written(tmp_path / "a.yaml", **changes))


@pytest.mark.parametrize("words", ["a: [", "{", "words", ""])
def test_what_is_no_mapping_is_refused(words: str, tmp_path: Path) -> None:
    for name in ("a.yaml", "a.json"):
        (tmp_path / name).write_text(words)
        with pytest.raises(ValueError, match="settings="):
            read_run_settings(tmp_path / name)
    with pytest.raises(ValueError, match="a folder with a run.json"):
        read_run_settings(tmp_path)


def test_changes_by_name_are_those_written_in_the_file(text: CorpusConfig, tmp_path: Path) -> None:
    words = ["--training.steps", "7", "--training.learning_rate=1e-3", "--data.paths", f"[{text.paths[0]}]"]
    words += ["--parallel.shard", "2", "--budget", "3e9", "--training.eps=1E-9"]
    read = read_run_settings(written(tmp_path / "a.yaml", parallel={"accelerator": "cpu"}), changes_of(words))
    assert read.training == replace(TRAINING, steps=7, learning_rate=1e-3, eps=1e-9)
    assert read.data == CorpusConfig(text.paths)
    assert read.parallel == ParallelConfig(accelerator="cpu", shard=2)
    assert read.flops == read.budget == 3e9
    assert changes_of([]) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainnig.steps", "7"], "setting='--trainnig.steps': it must be --model or --data"),
        (["steps", "7"], "setting='steps': it must be --model"),
        (["--training.steps"], "setting='--training.steps': it must be .* and a value"),
        (["--training.steps", "[7"], r"training.steps='\[7': it must be YAML"),
        (["--training.stepps", "7"], "training=.'stepps'.: it must be of steps"),
        (["--validation_windows.count", "7"], "validation_windows.count=7: it must be no part of validation_windows"),
    ],
)
def test_changes_that_are_none_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_run_settings(written(tmp_path / "a.yaml", validation_windows=8), changes_of(words))
