"""Bytes on one of several devices: what gloo's processes hold, and what the sizes' formulas say."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from memory_work import CONFIG, all_gradients, all_held, held_by_stages

sys.path.insert(0, str(Path(__file__).parents[1] / "parallel"))
from gloo import run_processes

from toolkit.compute import memory
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel import ParallelConfig

TWO = {
    "data": ParallelConfig(data=2),
    "shard": ParallelConfig(shard=2),
    "tensor": ParallelConfig(tensor=2),
    "expert": ParallelConfig(data=2, expert=2),
    "shard-expert": ParallelConfig(shard=2, expert=2),
}
DENSE = BlockConfig(AttentionConfig(heads=8, kv_heads=4), FeedForwardConfig(256))
MOE = BlockConfig(AttentionConfig(heads=8, kv_heads=4), MoEConfig(64, 8, 2))
LARGE = DecoderConfig(512, 64, (DENSE, MOE) * 4, tied_head=False)
BATCH, LENGTH = 8, 64


def test_parameters_gradients_and_moments_are_those_of_the_fullest_process() -> None:
    """FSDP2 gives the first process the odd rows: dim is 2 x 17, hidden 2 x 13, the norms' heads 4."""
    found = run_processes(2, all_held, list(TWO.values()))
    for case, parallel in enumerate(TWO.values()):
        planned = memory(CONFIG, 2, 8, parallel=parallel)
        fullest = tuple(max(rank[case][part] for rank in found) for part in range(3))
        assert (planned.parameters, planned.gradients, planned.optimizer) == fullest, parallel


@pytest.mark.parametrize(
    "parallel", [TWO["shard"], TWO["shard-expert"], TWO["tensor"]], ids=["shard", "expert", "tensor"]
)
def test_spread_layers_that_are_computed_again_give_the_same_bits(parallel: ParallelConfig) -> None:
    none, *others = run_processes(2, all_gradients, parallel, ["none", "full", "selective", 2])[0]
    for gradients in others:
        assert gradients == none


@pytest.mark.parametrize("tied_head", [True, False])
def test_a_pipeline_s_fullest_stage_is_the_one_that_is_planned(tied_head: bool) -> None:
    """Layers of unlike work, so that stages are uneven; a tied head is a second copy."""
    config = replace(CONFIG, blocks=(CONFIG.blocks[0], *[CONFIG.blocks[1]] * 4), tied_head=tied_head)
    found = run_processes(2, held_by_stages, config, 8)
    assert memory(config, 2, 8, parallel=ParallelConfig(pipeline=2)).parameters == max(found)


def test_one_process_is_no_parallel() -> None:
    for recompute in ("none", "full", "selective"):
        one = memory(LARGE, BATCH, LENGTH, "bf16-mixed", ParallelConfig(devices=1), recompute)
        assert one == memory(LARGE, BATCH, LENGTH, "bf16-mixed", recompute=recompute)
        assert one.communication == 0


def test_states_divide_by_shards_as_zero_says() -> None:
    """Rajbhandari et al. 2020, figure 1: (4 + 4 + 8) bytes of a number over the processes, in fp32."""
    whole = memory(LARGE, BATCH, LENGTH)
    for shard in (2, 4, 8):
        part = memory(LARGE, BATCH, LENGTH, parallel=ParallelConfig(shard=shard))
        assert shard * part.parameters == whole.parameters  # every first axis divides
        assert shard * part.gradients == whole.gradients
        assert shard * part.optimizer == whole.optimizer
        assert part.activations == whole.activations


def test_contexts_share_tokens_and_cut_parameters() -> None:
    whole, part = memory(LARGE, BATCH, LENGTH), memory(LARGE, BATCH, LENGTH, parallel=ParallelConfig(context=4))
    assert 4 * part.activations == whole.activations
    assert 4 * part.optimizer == whole.optimizer


def test_tensor_shares_all_but_what_products_read() -> None:
    """Korthikanti et al. 2022, equation 4, and what is gathered here stays gathered: two inputs a layer, the head's."""
    config = replace(LARGE, blocks=(DENSE,) * 8)
    whole, part = memory(config, BATCH, LENGTH), memory(config, BATCH, LENGTH, parallel=ParallelConfig(tensor=4))
    tokens, inputs = BATCH * LENGTH, 2 * len(config.blocks) + 1
    common = tokens * 4 * inputs * config.dim
    assert 4 * (part.activations - common) == whole.activations - common


def test_experts_are_divided_and_not_cut() -> None:
    whole = memory(LARGE, BATCH, LENGTH)
    part = memory(LARGE, BATCH, LENGTH, parallel=ParallelConfig(data=4, expert=4))
    experts = 4 * 4 * 8 * 3 * 64 * 64  # bytes, layers, experts, matrices
    assert whole.parameters - part.parameters == experts * 3 // 4
    both = memory(LARGE, BATCH, LENGTH, parallel=ParallelConfig(data=2, expert=2, tensor=2))
    tensor = memory(LARGE, BATCH, LENGTH, parallel=ParallelConfig(tensor=2))
    assert tensor.parameters - both.parameters == experts // 4
    cut = memory(LARGE, BATCH, LENGTH, parallel=ParallelConfig(shard=4, expert=2))
    assert cut.parameters == experts // 2 + (whole.parameters - experts) // 4


def test_the_first_stage_of_a_pipeline_holds_all_micro_batches_and_the_last_one() -> None:
    config = replace(LARGE, blocks=(DENSE,) * 8, vocab_size=8)
    whole, part = memory(config, BATCH, LENGTH), memory(config, BATCH, LENGTH, parallel=ParallelConfig(pipeline=4))
    no_head = whole.activations - BATCH * LENGTH * 4 * (3 * config.dim + config.vocab_size)
    assert part.activations == no_head // 4
    assert part.parameters < whole.parameters // 3


def test_stage_3_gives_back_all_layers_but_two_and_bf16_gathers_half() -> None:
    """Beside what is gathered are a layer's gradients in fp32 on their way, with ZeRO-2 twice as they are packed."""
    sizes = [sum(each.numel() for each in block.parameters()) for block in Decoder(LARGE).blocks]
    outer, largest = sum(each.numel() for each in Decoder(LARGE).parameters()) - sum(sizes), max(sizes)
    two, three = (memory(LARGE, BATCH, LENGTH, parallel=ParallelConfig(shard=4, zero=zero)) for zero in (2, 3))
    half = memory(LARGE, BATCH, LENGTH, parallel=ParallelConfig(shard=4, gather_dtype="bf16"))
    assert two.communication == 4 * (outer + sum(sizes) + 2 * largest)
    assert three.communication == 4 * (outer + 3 * largest)
    assert half.communication == 2 * (outer + 2 * largest) + 4 * largest + 2 * largest // 4


def test_whole_models_and_whole_stages_are_averaged_through_buckets_as_large_as_gradients() -> None:
    copies = memory(LARGE, BATCH, LENGTH, parallel=ParallelConfig(data=2))
    assert copies.communication == copies.gradients
    staged = memory(LARGE, BATCH, LENGTH, parallel=ParallelConfig(data=2, pipeline=2))
    sent = 4 * BATCH // 2 * LENGTH * LARGE.dim  # a micro-batch's stream; of both, it and its gradient
    assert staged.communication == staged.gradients + 2 * 2 * sent


def test_offloaded_states_are_on_the_host() -> None:
    part = memory(LARGE, BATCH, LENGTH, parallel=ParallelConfig(shard=2, offload=True))
    assert part.parameters == part.gradients == part.optimizer == 0 < part.communication


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor": 3}, "heads=8: it must be a multiple of tensor=3"),
        ({"tensor": 2, "context": 64}, "seq_len=64: it must be a multiple of context \\* tensor = 128"),
        ({"tensor": 8}, "key_heads=4: it must be a multiple of tensor=8"),
        ({"data": 3, "expert": 3}, "num_experts=8: it must be a multiple of expert=3"),
        ({"pipeline": 9}, "pipeline=9: it must be at most 8, the layers"),
        ({"pipeline": 3}, "batch_size=8: it must be a multiple of micro_batches=3"),
        ({"pipeline": 3, "micro_batches": 6}, "batch_size=8: it must be a multiple of micro_batches=6"),
        ({"pipeline": 2, "shard": 2}, "shard=2: it must be 1 with a pipeline, beside which data may be"),
        ({"context": 5}, "seq_len=64: it must be a multiple of context \\* tensor = 5"),
        ({"context": 64}, "seq_len=64: it must be a multiple of 2 \\* context = 128, the chunks of a ring"),
    ],
)
def test_what_cannot_be_shared_is_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        memory(LARGE, BATCH, LENGTH, parallel=ParallelConfig(**sizes))
