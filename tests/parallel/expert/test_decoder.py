"""A decoder whose experts are shared trains as in one process, and its state is one process's."""

from __future__ import annotations

from pathlib import Path

import expert_decoder_work
import pytest
import torch
import torch.distributed.checkpoint as dcp
from gloo import run_processes


@pytest.mark.parametrize(
    ("way", "ranks", "copies"),
    [
        ("loop", 2, 1),
        ("ddp", 2, 1),
        ("fsdp", 4, 2),
        pytest.param("ddp", 4, 2, marks=pytest.mark.slow),
        pytest.param("fsdp", 2, 1, marks=pytest.mark.slow),
        pytest.param("loop", 4, 1, marks=pytest.mark.slow),
    ],
)
def test_three_clipped_steps_are_those_of_one_process(way: str, ranks: int, copies: int) -> None:
    for found in run_processes(ranks, expert_decoder_work.errors, way, copies):
        assert {path: error for path, error in found.items() if not error < 1e-10} == {}


def test_losses_in_fp32_with_the_same_routing_are_those_of_one_process() -> None:
    for expected, found in run_processes(2, expert_decoder_work.replayed_losses):
        assert found == pytest.approx(expected, abs=1e-5)
        assert expected[0] != expected[-1]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_state_goes_there_and_back_and_into_a_checkpoint_that_one_process_reads(tmp_path: Path) -> None:
    for found in run_processes(2, expert_decoder_work.state_there_and_back, str(tmp_path)):
        assert {path: error for path, error in found.items() if not error < 1e-12} == {}
    decoder, expected = (expert_decoder_work.make_decoder(seed=seed) for seed in (3, 1))
    state = {"model": decoder.state_dict()}
    dcp.load(state, checkpoint_id=str(tmp_path), no_dist=True)
    for path, value in expected.state_dict().items():
        assert torch.equal(state["model"][path], value), path


def test_sums_may_be_over_the_processes_whose_tokens_differ() -> None:
    for rank, (bias, given, counts) in enumerate(run_processes(4, expert_decoder_work.sums_over_a_group)):
        own, sums = ([-1.0, 1.0], [6.0, 2.0]) if rank < 2 else ([1.0, -1.0], [2.0, 6.0])
        assert bias == own
        assert given == sums
        assert counts == [*sums, 8.0, 8.0]
