"""What a process keeps in a step over several, against what is measured while gloo's processes run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from kept_work import all_kept, saved_by_heads

sys.path.insert(0, str(Path(__file__).parents[1] / "parallel"))
from gloo import run_processes

from toolkit.compute import memory
from toolkit.compute.memory import PRECISIONS
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel import ParallelConfig
from toolkit.training.kept_bytes import KeptBytes

ATTENTION = AttentionConfig(heads=8, kv_heads=4)
BALANCED = MoEConfig(64, 8, 2, router="UniformRouter()")
DENSE = DecoderConfig(256, 64, (BlockConfig(ATTENTION, FeedForwardConfig(256)),) * 4)
SPARSE = DecoderConfig(256, 64, (BlockConfig(ATTENTION, BALANCED),) * 4)
LEARNED = DecoderConfig(256, 64, (BlockConfig(ATTENTION, MoEConfig(64, 8, 2)),) * 4)
BATCH, LENGTH = 8, 48
"""No activation has a weight's shape, by which gathered weights are told from them."""

CASES = {
    "data": (DENSE, ParallelConfig(data=2)),
    "shard": (DENSE, ParallelConfig(shard=2)),
    "shard, ZeRO-2": (DENSE, ParallelConfig(shard=2, zero=2)),
    "tensor": (DENSE, ParallelConfig(tensor=2)),
    "whole stream": (DENSE, ParallelConfig(tensor=2, sequence_parallel=False)),
    "experts' hidden units": (LEARNED, ParallelConfig(tensor=2)),
    "ring": (DENSE, ParallelConfig(context=2)),
    "expert, learned": (LEARNED, ParallelConfig(data=2, expert=2)),
    "expert": (SPARSE, ParallelConfig(data=2, expert=2)),
    "shard, bf16": (DENSE, ParallelConfig(shard=2, gather_dtype="bf16")),
    "shard, bf16, experts": (SPARSE, ParallelConfig(shard=2, gather_dtype="bf16")),
    "pipeline, micro-batches in flight": (DENSE, ParallelConfig(pipeline=2, micro_batches=4)),
    "GPipe": (DENSE, ParallelConfig(pipeline=2, micro_batches=4, schedule="gpipe")),
    "interleaved": (
        DENSE,
        ParallelConfig(pipeline=2, micro_batches=4, schedule="interleaved", stages_per_process=2),
    ),
}
TRIED = [(name, precision) for precision in PRECISIONS for name in CASES]


@pytest.fixture(scope="module")
def kept() -> dict[tuple[str, str], list[KeptBytes]]:
    """Of every process."""
    cases = [(*CASES[name], BATCH, LENGTH, precision) for name, precision in TRIED]
    each = run_processes(2, all_kept, cases)
    return {case: [found[place] for found in each] for place, case in enumerate(TRIED)}


@pytest.mark.parametrize(("name", "precision"), TRIED)
def test_activations_of_the_fullest_process_are_those_planned(
    name: str, precision: str, kept: dict[tuple[str, str], list[KeptBytes]]
) -> None:
    config, parallel = CASES[name]
    planned = memory(config, BATCH, LENGTH, precision, parallel).activations
    assert planned == pytest.approx(max(each.activations for each in kept[name, precision]), rel=0.1)


@pytest.mark.parametrize(("name", "precision"), TRIED)
def test_buffers_of_what_is_sent_are_those_planned(
    name: str, precision: str, kept: dict[tuple[str, str], list[KeptBytes]]
) -> None:
    """To the byte where loads are balanced: what is there at once is known of each kind."""
    config, parallel = CASES[name]
    planned = memory(config, BATCH, LENGTH, precision, parallel).communication
    found = max(each.communication for each in kept[name, precision])
    assert planned == (found if name != "expert, learned" else pytest.approx(found, rel=0.15))


def test_sharing_out_heads_keeps_what_a_ring_keeps_and_keys_that_go_to_several() -> None:
    """A process has whole sequences of its heads in place of parts of all; one key head goes to both, twice as much."""
    one_key = replace(DENSE, blocks=(replace(DENSE.blocks[0], attention=AttentionConfig(heads=8, kv_heads=1)),) * 4)
    ring, ring_of_one = (memory(each, BATCH, LENGTH, parallel=ParallelConfig(context=2)) for each in (DENSE, one_key))
    found, found_of_one = run_processes(2, saved_by_heads, [DENSE, one_key], BATCH, LENGTH)[0]
    assert found == pytest.approx(ring.activations, rel=0.02)
    once_more = 4 * 2 * 8 * 4 * BATCH * LENGTH // 2  # layers, keys and values, width of a head, bytes, tokens
    assert found_of_one == pytest.approx(ring_of_one.activations + once_more, rel=0.02)
