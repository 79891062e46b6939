"""Shards that some processes wrote, read by others in another number and layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_work import (
    MODEL,
    Table,
    fail_to_write,
    load,
    load_experts,
    load_moe,
    save,
    save_callbacks,
    save_experts,
    save_moe,
    save_stage,
)  # fmt: skip
from gloo import run_processes

from toolkit.models import Decoder
from toolkit.parallel import ParallelConfig
from toolkit.training.checkpoints import problems, read_checkpoint
from toolkit.training.checkpoints.portable import numbered_state

LAYOUTS = {
    "shard4": ParallelConfig(devices=4, shard=4),
    "shard2": ParallelConfig(devices=2, shard=2),
    "copies2": ParallelConfig(devices=4, data=2, shard=2),
    "tensor2": ParallelConfig(devices=2, tensor=2),
    "shard2tensor2": ParallelConfig(devices=4, shard=2, tensor=2),
}


def require_same(found: Table, expected: Table) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("shard4", "shard2"),
        pytest.param("shard2", "shard4", marks=pytest.mark.slow),
        pytest.param("shard4", "tensor2", marks=pytest.mark.slow),
        pytest.param("shard2tensor2", "shard2", marks=pytest.mark.slow),
        pytest.param("copies2", "tensor2", marks=pytest.mark.slow),
    ],
)
def test_weights_and_moments_are_the_same_bits_in_another_layout_and_in_one_process(
    tmp_path: Path, first: str, second: str
) -> None:
    one, other = LAYOUTS[first], LAYOUTS[second]
    expected = run_processes(one.world_size, save, str(tmp_path / "x.ckpt"), one)[0]
    assert problems(tmp_path / "x.ckpt") == []
    for found, rest in run_processes(other.world_size, load, str(tmp_path / "x.ckpt"), other):
        require_same(found, expected)
        assert rest == {"global_step": 2, "extra": [0, 1, 2]}
    alone, rest = load(str(tmp_path / "x.ckpt"), ParallelConfig())
    require_same(alone, expected)
    assert rest == {"global_step": 2, "extra": [0, 1, 2]}


def test_read_as_one_process_s_checkpoint_it_is_what_a_plain_decoder_and_optimizer_load(tmp_path: Path) -> None:
    expected = run_processes(2, save, str(tmp_path / "x.ckpt"), LAYOUTS["tensor2"])[0]
    state = read_checkpoint(tmp_path / "x.ckpt")
    decoder = Decoder(MODEL).double()
    decoder.load_state_dict(state["state_dict"])
    moments = numbered_state(state["optimizer_states"][0])["state"]
    found = {f"weights {name}": tensor.numpy() for name, tensor in decoder.state_dict().items()}
    found |= {f"{index} {key}": value.numpy() for index, values in moments.items() for key, value in values.items()}
    require_same(found, expected)


def test_each_process_writes_its_own_shards_and_no_more(tmp_path: Path) -> None:
    run_processes(4, save, str(tmp_path / "x.ckpt"), LAYOUTS["shard4"])
    table = json.loads((tmp_path / "x.ckpt" / "tensors.json").read_text())
    pieces = table["state_dict/blocks.1.feed_forward.experts.down_proj"]["pieces"]
    assert [piece["offsets"][0] for piece in pieces] == [0, 1, 2, 3]
    assert len({piece["file"] for piece in pieces}) == 4
    sizes = sum(int(np.prod(piece["sizes"])) for entry in table.values() for piece in entry["pieces"])
    assert sizes == sum(int(np.prod(entry["shape"])) for entry in table.values())  # nothing twice


@pytest.mark.parametrize(
    ("first", "second"), [((2, 2), (1, 1)), ((1, 1), (2, 2)), pytest.param((4, 2), (4, 4), marks=pytest.mark.slow)]
)
def test_experts_are_dealt_anew_by_their_places_in_the_whole(
    tmp_path: Path, first: tuple[int, int], second: tuple[int, int]
) -> None:
    """(processes, of a group that shares the experts): with (4, 2) there are two copies."""
    run_processes(first[0], save_experts, str(tmp_path / "x.ckpt"), first[1])
    whole = torch.arange(24.0, dtype=torch.float64).view(4, 3, 2).chunk(second[1])
    for rank, own in run_processes(second[0], load_experts, str(tmp_path / "x.ckpt"), second[1]):
        assert own == whole[rank % second[1]].tolist()


def test_a_mixture_s_experts_shared_by_two_are_read_whole_by_one_and_dealt_again(tmp_path: Path) -> None:
    expected = run_processes(2, save_moe, str(tmp_path / "x.ckpt"), 2)[0]
    table = json.loads((tmp_path / "x.ckpt" / "tensors.json").read_text())
    assert len(table["state_dict/blocks.1.feed_forward.experts.down_proj"]["pieces"]) == 2
    require_same(load_moe(str(tmp_path / "x.ckpt"), 1), expected)
    for found in run_processes(2, load_moe, str(tmp_path / "x.ckpt"), 2):
        require_same(found, expected)


def test_what_only_some_processes_have_is_joined(tmp_path: Path) -> None:
    run_processes(2, save_stage, str(tmp_path / "x.ckpt"))
    state = read_checkpoint(tmp_path / "x.ckpt")
    assert set(state["state_dict"]) == {"layer0.weight", "layer1.weight"}
    optimizer = state["optimizer_states"][0]
    assert optimizer["param_groups"][0]["params"] == ["layer0.weight", "layer1.weight"]
    torch.testing.assert_close(optimizer["state"]["layer1.weight"]["exp_avg"], torch.full((2, 2), 0.1).double())


def test_of_what_callbacks_keep_the_first_process_s_is_written(tmp_path: Path) -> None:
    run_processes(2, save_callbacks, str(tmp_path / "x.ckpt"))
    kept = read_checkpoint(tmp_path / "x.ckpt")["callbacks"]
    assert {name: tensor.tolist() for name, tensor in kept.items()} == {"seen": [0, 0, 0], "own0": 0, "own1": 1}


@pytest.mark.parametrize("broken", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_cannot_write_stops_all_and_leaves_what_was_there(tmp_path: Path, broken: int) -> None:
    path = tmp_path / "x.ckpt"
    before = run_processes(2, save, str(path), LAYOUTS["shard2"])[0]
    said = run_processes(2, fail_to_write, str(path), broken)
    assert all(f"rank {broken}" in words and "No space left on device" in words for words in said)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.ckpt"]
    require_same(load(str(path), ParallelConfig())[0], before)
