"""``fit`` through a pipeline is one process accumulating the same micro-batches; stopped, it goes on exactly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_work import CONFIG, LOSS_FREE, MICRO_BATCHES, MIXED, MIXTURE, MODEL, NOISY, STEPS, accumulated, run, runs
from gloo import run_processes
from training_cases import corpus, metrics

from toolkit.data import validation_windows
from toolkit.parallel import ParallelConfig
from toolkit.parallel.pipeline import token_loss
from toolkit.training.checkpoints import export_safetensors, read_checkpoint
from toolkit.training.checkpoints.tree import take_apart

TWO = ParallelConfig(pipeline=2, micro_batches=MICRO_BATCHES, accelerator="cpu")
COPIES = ParallelConfig(pipeline=2, data=2, micro_batches=MICRO_BATCHES, accelerator="cpu")
INTERLEAVED = ParallelConfig(
    pipeline=2, micro_batches=MICRO_BATCHES, schedule="interleaved", stages_per_process=2, accelerator="cpu"
)
ALONE = ParallelConfig(accelerator="cpu")
HALF = STEPS // 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[dict[str, Any]]]]:
    """What runs in the same two processes reached, by rank, and where: they start slowly."""
    folder = tmp_path_factory.mktemp("two")
    cases = [
        (folder / "whole", TWO),
        (folder / "noisy", INTERLEAVED, NOISY),
        (folder / "broken", INTERLEAVED, NOISY, HALF - 1),
        (folder / "broken", INTERLEAVED, NOISY),
        (folder / "layout", TWO, LOSS_FREE, HALF),
        (folder / "mixed", TWO, MIXED, None, MIXTURE),
    ]
    return folder, run_processes(2, runs, cases)


def last(folder: Path) -> dict[str, Any]:
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


def assert_identical(one: Any, other: Any) -> None:
    (rest, tensors), (right, expected) = take_apart(one), take_apart(other)
    assert str(rest) == str(right)  # as text: nan is not equal to itself
    torch.testing.assert_close(tensors, expected, rtol=0, atol=0)


def assert_accumulated(folder: Path, results: list[dict[str, Any]], readers: int) -> None:
    """Losses, rates, routing, validation and weights are the plain loop's."""
    right, table = accumulated(readers), metrics(folder)
    rows = [row for row in table if "train/loss" in row]
    assert len(rows) == STEPS
    for row, expected in zip(rows, right["rows"], strict=True):
        assert row["train/loss"] == pytest.approx(expected["loss"], rel=1e-12)
        assert row["train/learning_rate"] == pytest.approx(expected["rate"], rel=1e-12)
    with np.load(folder / "load.npz") as loads:
        assert loads["steps"].tolist() == list(range(1, STEPS + 1))
        for layer in (0, 2, 4):
            by_step = [row["stats"][f"blocks.{layer}.feed_forward"].load.numpy() for row in right["rows"]]
            np.testing.assert_allclose(loads[f"layer{layer}"], by_step, rtol=1e-12)
    windows = validation_windows(corpus().validation, CONFIG.context, 16)
    with torch.no_grad():
        nats = token_loss(right["decoder"](windows[:, :-1]).logits, windows[:, 1:]).item()
    ends = right["rows"][-1]["stats"].values()
    for fitted in results:
        assert fitted["bits_per_byte"] == pytest.approx(nats / math.log(2), rel=1e-12)
        assert fitted["max_violation"] == pytest.approx(np.mean([each.max_violation for each in ends]), rel=1e-12)
        assert fitted["token_entropy"] == pytest.approx(np.mean([each.entropy for each in ends]), rel=1e-10)
        assert fitted["tokens"] == STEPS * CONFIG.tokens_per_step
    weights = {f"decoder.{name}": tensor for name, tensor in right["state"].items()}
    found = last(folder)["state_dict"]
    assert found.keys() == weights.keys()
    torch.testing.assert_close(found, weights, rtol=1e-10, atol=1e-12)


def test_a_run_is_that_of_one_process_accumulating_the_same_micro_batches(folders: Any) -> None:
    folder, results = folders
    assert_accumulated(folder / "whole", [each[0] for each in results], readers=1)


def test_rows_of_a_task_among_the_text_weigh_as_in_one_process(folders: Any, tmp_path: Path) -> None:
    """No loss of the model is over a batch, so that one process need not accumulate micro-batches."""
    folder, results = folders
    alone = run(tmp_path / "alone", ALONE, MIXED, None, MIXTURE)
    figures = "bits_per_byte", "train_loss", "tokens", "flops", "max_violation", "token_entropy"
    right = [alone[name] for name in figures]
    assert all([each[-1][name] for name in figures] == pytest.approx(right, rel=1e-10) for each in results)
    found, whole = last(folder / "mixed"), last(tmp_path / "alone")
    torch.testing.assert_close(found["state_dict"], whole["state_dict"], rtol=1e-10, atol=1e-12)
    rates = (each["callbacks"]["RouterMonitor"]["flip_rates"] for each in (found, whole))
    assert_identical(*rates)


@pytest.mark.slow
def test_copies_of_a_pipeline_are_one_process(tmp_path: Path) -> None:
    results = run_processes(4, runs, [(tmp_path / "whole", COPIES)])
    assert_accumulated(tmp_path / "whole", [each[0] for each in results], readers=2)
    states = [each["torch"].numpy().tobytes() for each in last(tmp_path / "whole")["callbacks"]["ExactResume"]["ranks"]]
    assert len(set(states)) == 4, "copies of a stage draw dropout and noise for other tokens"


def test_a_run_that_was_stopped_goes_on_bit_for_bit_dropout_and_noise_included(folders: Any) -> None:
    folder, _ = folders
    whole, resumed = last(folder / "noisy"), last(folder / "broken")
    assert metrics(folder / "broken") == metrics(folder / "noisy")
    assert whole["callbacks"]["RouterMonitor"]["probe"]["chosen"].keys() == {"layer0", "layer2"}
    for name in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_identical(resumed[name], whole[name])
    for name in ("RouterMonitor", "ExactResume"):
        assert_identical(resumed["callbacks"][name], whole["callbacks"][name])


def test_the_optimizer_is_written_as_one_process_numbers_it(folders: Any, tmp_path: Path) -> None:
    """Interleaved stages hold layers 0 and 2, 1 and 3; the embedding, which is tied, is held twice and written once."""
    folder, _ = folders
    run(tmp_path / "alone", ALONE, NOISY, 1)
    runs_ = folder / "noisy", tmp_path / "alone"
    groups, right = (last(each)["optimizer_states"][0]["param_groups"] for each in runs_)
    names = [name for name in last(tmp_path / "alone")["state_dict"] if not name.endswith("bias")]
    assert [len(group["params"]) for group in groups] == [len(group["params"]) for group in right]
    assert sorted(name for group in groups for name in group["params"]) == sorted(names)
    for group in groups:
        places = [names.index(name) for name in group["params"]]
        assert places == sorted(places)


def test_a_run_goes_on_in_one_process_and_from_one_process(folders: Any, tmp_path: Path) -> None:
    folder, _ = folders
    run(tmp_path / "whole", ALONE, LOSS_FREE)
    run(tmp_path / "alone", ALONE, LOSS_FREE, HALF)
    run(folder / "layout", ALONE, LOSS_FREE)
    run_processes(2, runs, [(tmp_path / "alone", TWO, LOSS_FREE)])
    right = last(tmp_path / "whole")
    for found in (last(folder / "layout"), last(tmp_path / "alone")):
        torch.testing.assert_close(found["state_dict"], right["state_dict"], rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_a_run_goes_on_sharded_and_back(tmp_path: Path) -> None:
    run(tmp_path / "whole", ALONE, LOSS_FREE)
    sharded = ParallelConfig(shard=2, accelerator="cpu")
    cases = [(tmp_path / "runs", TWO, 2), (tmp_path / "runs", sharded, 4), (tmp_path / "runs", TWO, None)]
    run_processes(2, runs, [(folder, parallel, LOSS_FREE, steps) for folder, parallel, steps in cases])
    right = last(tmp_path / "whole")["state_dict"]
    torch.testing.assert_close(last(tmp_path / "runs")["state_dict"], right, rtol=1e-10, atol=1e-12)


def test_a_pipeline_s_checkpoint_is_exported_whole(folders: Any, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    folder, _ = folders
    names = export_safetensors(folder / "whole" / "checkpoints" / "last.ckpt", tmp_path / "model.safetensors")
    found = safetensors.load_file(tmp_path / "model.safetensors")
    right = last(folder / "whole")["state_dict"]
    assert {f"decoder.{name}" for name in names} == right.keys()
    torch.testing.assert_close({f"decoder.{name}": tensor for name, tensor in found.items()}, right, rtol=0, atol=0)
    assert MODEL.tied_head and "head.weight" not in found
