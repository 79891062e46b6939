"""Bytes that are sent, counted in running collectives, against the formulas of the papers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gloo import run_processes
from traffic_work import calls, of_steps, uneven

from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig
from toolkit.parallel import ParallelConfig, SentBytes

FLOAT = 4
BATCH, LENGTH = 2, 8
ATTENTION, FEED_FORWARD = AttentionConfig(heads=4, kv_heads=2), FeedForwardConfig(hidden_dim=24)
MODEL = DecoderConfig(vocab_size=32, dim=16, blocks=(BlockConfig(ATTENTION, FEED_FORWARD),) * 3)


def sizes() -> tuple[int, int]:
    """Bytes of the layers' parameters, and of the others."""
    decoder = Decoder(MODEL)
    layers = sum(parameter.numel() for parameter in decoder.blocks.parameters())
    return FLOAT * layers, FLOAT * (sum(parameter.numel() for parameter in decoder.parameters()) - layers)


@pytest.fixture(scope="module")
def sent() -> dict[str, dict[str, float]]:
    """By kind, of one process's step, for each way of spreading the model over two."""
    ways = {
        "zero 3": ParallelConfig(shard=2),
        "zero 2": ParallelConfig(shard=2, zero=2),
        "tensor": ParallelConfig(tensor=2),
        "whole stream": ParallelConfig(tensor=2, sequence_parallel=False),
    }
    results = run_processes(2, of_steps, [(MODEL, parallel) for parallel in ways.values()], BATCH, LENGTH)
    assert results[0] == results[1]
    return dict(zip(ways, results[0], strict=True))


NUMBERS = 64


@pytest.fixture(scope="module")
def counted() -> list[tuple[dict[str, float], dict[str, float], tuple[dict[str, float], int]]]:
    """By rank: of collectives, of those with a root, of DDP."""
    return run_processes(2, calls, NUMBERS)


def test_each_collective_counts_what_the_best_algorithm_sends(counted: list[tuple[Any, ...]]) -> None:
    """Of x bytes in each of n processes: all-gather (n - 1) x, all-reduce 2 (n - 1) / n x, the others (n - 1) / n x."""
    x, n = FLOAT * NUMBERS, 2
    expected = {
        "all_gather": (n - 1) * x,
        "all_reduce": 2 * (n - 1) / n * x,
        **dict.fromkeys(("reduce_scatter", "all_to_all", "broadcast"), (n - 1) / n * x),
    }
    assert [found for found, *_ in counted] == [expected] * n


def test_of_an_all_to_all_all_parts_but_one_s_own_are_counted_by_their_sizes() -> None:
    for *counted, expected in run_processes(3, uneven):
        assert counted == [expected] * 3


def test_what_has_a_root_counts_the_average_or_what_the_root_gives(counted: list[tuple[Any, ...]]) -> None:
    x = FLOAT * NUMBERS
    first, second = (found for _, found, _ in counted)
    assert first == {"reduce": x / 2, "gather": x / 2, "scatter": x / 2}
    assert second == {**first, "scatter": 0}


def test_whole_copies_average_gradients_in_the_backward_pass(counted: list[tuple[Any, ...]]) -> None:
    """DDP's hooks run where autograd does, which the counter sees."""
    for by_kind, gradients in (found for *_, found in counted):
        assert by_kind == {"all_reduce": gradients}  # 2 (n - 1) / n = 1


def test_a_call_that_nobody_knows_how_to_count_is_no_silence() -> None:
    with torch.library._scoped_library("c10d", "FRAGMENT") as library:
        library.define("whisper(Tensor x) -> Tensor")
        library.impl("whisper", lambda x: x.clone(), "CPU")
        with (
            pytest.raises(RuntimeError, match="c10d.whisper.default: SentBytes does not know what it sends"),
            SentBytes(),
        ):
            torch.ops.c10d.whisper(torch.ones(1))


@pytest.mark.parametrize(("way", "gathers"), [("zero 2", 1), ("zero 3", 2)])
def test_sharding_sends_the_parameters_twice_or_three_times(
    way: str, gathers: int, sent: dict[str, dict[str, float]]
) -> None:
    """ZeRO's section 7: parameters gathered once, or for the backward pass again, and gradients scattered once."""
    layers, others = sizes()
    assert sent[way] == {
        "all_gather": (gathers * layers + others) / 2,
        "reduce_scatter": (layers + others) / 2,
    }


def test_tensor_parallelism_gathers_and_scatters_tokens_around_each_layer(sent: dict[str, dict[str, float]]) -> None:
    """Korthikanti et al.'s 4.2.2: forward and backward, one gather and one scatter of all tokens for each of two layers
    a block; once more for embedding and head, whose logits are gathered too; and the norms' small gradients are summed.
    """
    half = 1 / 2
    tokens = FLOAT * BATCH * LENGTH * MODEL.dim
    layers = 2 * len(MODEL.blocks) + 1
    logits = FLOAT * BATCH * LENGTH * MODEL.vocab_size
    assert sent["tensor"] == {
        "all_gather": half * (2 * layers * tokens + logits),
        "reduce_scatter": half * 2 * layers * tokens,
        "all_reduce": 2 * half * layers * FLOAT * MODEL.dim,
    }


def test_a_whole_stream_sends_as_many_bytes_without_the_norms(sent: dict[str, dict[str, float]]) -> None:
    """Two sums of all tokens in place of each gather and scatter."""
    norms = (2 * len(MODEL.blocks) + 1) * FLOAT * MODEL.dim
    assert set(sent["whole stream"]) == {"all_reduce", "all_gather"}
    assert sum(sent["whole stream"].values()) + norms == sum(sent["tensor"].values())
