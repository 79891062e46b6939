"""Bytes that a process sends: what gloo's processes are counted to send, and what the shapes' formulas say."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sent_work import all_sent

sys.path.insert(0, str(Path(__file__).parents[1] / "parallel"))
from gloo import run_processes

from toolkit.attention import Causal, Pattern, SlidingWindow
from toolkit.compute import traffic
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel import ParallelConfig
from toolkit.parallel.context import AttentionShape, Layout, ring_traffic

ATTENTION = AttentionConfig(
    heads=4, kv_heads=2, head_dim=4, qk_norm=True, sinks=True, pattern="Causal() & SlidingWindow(5)"
)
BALANCED = MoEConfig(6, 4, 2, shared_experts=1, shared_gate=True, bias=True, router="UniformRouter()")
COUNTED = replace(BALANCED, router="TopKRouter()")
DENSE = BlockConfig(ATTENTION, FeedForwardConfig(hidden_dim=26, bias=True))
MODEL = DecoderConfig(34, 34, (DENSE, BlockConfig(ATTENTION, COUNTED), DENSE), tied_head=False)
"""Odd rows for two processes: width 2 x 17, hidden 2 x 13."""
TIED = DecoderConfig(34, 34, (DENSE,) * 4)
TIED_ONE = replace(TIED, blocks=(DENSE,))
BALANCED_MODEL = replace(MODEL, blocks=(DENSE, BlockConfig(ATTENTION, BALANCED), DENSE))
BATCH, LENGTH = 4, 16

CASES: dict[str, tuple[Any, ...]] = {
    "data": (MODEL, ParallelConfig(data=2)),
    "zero 2": (MODEL, ParallelConfig(shard=2, zero=2)),
    "zero 3": (MODEL, ParallelConfig(shard=2)),
    "zero 3, bf16": (MODEL, ParallelConfig(shard=2, gather_dtype="bf16")),
    "zero 3, computed again": (MODEL, ParallelConfig(shard=2), "32-true", "full"),
    "tensor": (MODEL, ParallelConfig(tensor=2)),
    "tensor, mixed": (MODEL, ParallelConfig(tensor=2), "bf16-mixed"),
    "tensor, computed again": (MODEL, ParallelConfig(tensor=2), "32-true", 2),
    "whole stream, selective": (MODEL, ParallelConfig(tensor=2, sequence_parallel=False), "bf16-mixed", "selective"),
    "context": (TIED, ParallelConfig(context=2), "bf16-mixed"),
    "context, computed again": (TIED, ParallelConfig(context=2), "32-true", "selective"),
    "ulysses": (TIED, ParallelConfig(context=2, context_method="ulysses"), "bf16-mixed"),
    "ulysses, computed again": (TIED, ParallelConfig(context=2, context_method="ulysses"), "32-true", "selective"),
    "expert": (BALANCED_MODEL, ParallelConfig(data=2, expert=2)),
    "expert, computed again": (BALANCED_MODEL, ParallelConfig(shard=2, expert=2), "bf16-mixed", "full"),
    "pipeline": (MODEL, ParallelConfig(pipeline=2)),
    "many micro-batches": (MODEL, ParallelConfig(pipeline=2, micro_batches=4)),
    "tied": (TIED, ParallelConfig(pipeline=2)),
    "interleaved": (TIED, ParallelConfig(pipeline=2, micro_batches=4, schedule="interleaved", stages_per_process=2)),
}
OF_FOUR: dict[str, tuple[Any, ...]] = {
    "copies of shards": (MODEL, ParallelConfig(data=2, shard=2)),
    "tensor, sharded": (MODEL, ParallelConfig(tensor=2, shard=2)),
    "tensor, gathered in bf16": (MODEL, ParallelConfig(tensor=2, shard=2, gather_dtype="bf16")),
    "tensor, context": (TIED, ParallelConfig(tensor=2, context=2)),
    "tensor, ulysses": (TIED, ParallelConfig(tensor=2, context=2, context_method="ulysses")),
    "experts and tensor": (BALANCED_MODEL, ParallelConfig(data=2, expert=2, tensor=2)),
    "experts and tensor, sharded": (BALANCED_MODEL, ParallelConfig(shard=2, expert=2, tensor=2), "bf16-mixed", "full"),
    "the same in bf16": (BALANCED_MODEL, ParallelConfig(shard=2, expert=2, tensor=2, gather_dtype="bf16")),
    "experts copied": (BALANCED_MODEL, ParallelConfig(data=4, expert=2)),
    "stages copied": (TIED, ParallelConfig(pipeline=2, data=2)),
    "four stages": (TIED, ParallelConfig(pipeline=4)),
}


def planned(model: DecoderConfig, parallel: ParallelConfig, *settings: Any) -> float:
    precision, recompute = {0: ("32-true", "none"), 1: (*settings, "none"), 2: settings}[len(settings)]
    return traffic(model, BATCH, LENGTH, precision, parallel, recompute).total


def counted(processes: int, cases: dict[str, tuple[Any, ...]]) -> dict[str, list[float]]:
    """By case, of every process."""
    each = run_processes(processes, all_sent, [(*case[:2], BATCH, LENGTH, *case[2:]) for case in cases.values()])
    return {name: [found[place] for found in each] for place, name in enumerate(cases)}


@pytest.fixture(scope="module")
def sent() -> dict[str, list[float]]:
    return counted(2, CASES)


@pytest.mark.parametrize("name", CASES)
def test_what_two_processes_send_is_what_the_formula_says(name: str, sent: dict[str, list[float]]) -> None:
    assert max(sent[name]) == planned(*CASES[name]) > 0


@pytest.mark.slow
def test_what_four_processes_send_is_what_the_formula_says() -> None:
    for name, found in counted(4, OF_FOUR).items():
        assert max(found) == planned(*OF_FOUR[name]) > 0, name


def test_one_process_sends_nothing() -> None:
    assert traffic(MODEL, BATCH, LENGTH).total == 0


@pytest.mark.parametrize(("layout", "parts"), [("contiguous", 1), ("zigzag", 2)])
def test_a_window_sends_as_much_however_many_share_the_sequence(layout: str, parts: int) -> None:
    """A window as long as a part reaches the part before, or of chunks half as long the two before: two for each."""
    for ranks in (8, 16):
        held = Layout(layout, ranks, 16 * ranks)
        part = 2 * 8 * 4 * 16  # keys and values 8 wide, fp32
        assert most_sent(Causal() & SlidingWindow(16), held) == parts * part
        assert most_sent(Causal(), held) == (ranks - 1) * part


def most_sent(pattern: Pattern, layout: Layout) -> int:
    """Of any rank's forward pass, with one head 8 wide."""
    shape = AttentionShape(1, 1, 1, 8, 8, itemsize=4)
    return max(ring_traffic(pattern, layout, rank, shape).forward for rank in range(layout.ranks))


def test_what_no_formula_says_is_refused() -> None:
    depths = replace(TIED, blocks=(replace(DENSE, depth_capacity=0.5),))
    with pytest.raises(ValueError, match="no mixture of depths with tensor above 1"):
        traffic(depths, BATCH, LENGTH, parallel=ParallelConfig(tensor=2))
    chosen = replace(TIED, blocks=(replace(DENSE, attention=replace(ATTENTION, pattern="MoBA(block=4, top_k=2)")),))
    with pytest.raises(ValueError, match="a fixed pattern with context_method='ring'"):
        traffic(chosen, BATCH, LENGTH, parallel=ParallelConfig(context=2))
    by_heads = ParallelConfig(context=2, context_method="ulysses")
    assert traffic(chosen, BATCH, LENGTH, parallel=by_heads) == traffic(TIED_ONE, BATCH, LENGTH, parallel=by_heads)
    uneven = replace(TIED, blocks=(replace(DENSE, attention=replace(ATTENTION, heads=3, kv_heads=3)),))
    with pytest.raises(ValueError, match=r"heads=3: it must be a multiple of 2 ranks \(3 / 2 is not whole\)"):
        traffic(uneven, BATCH, LENGTH, parallel=by_heads)
