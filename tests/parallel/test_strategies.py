"""However a model is spread, its losses, gradients, weights and routing are those of one process."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from gloo import run_processes
from strategies_work import decoder, generated, spread_all

from toolkit.parallel import ParallelConfig
from toolkit.training.equivalence import Steps, train_steps

KINDS = ("dense", "moe", "biased", "depths")
PAIRS = {
    "data": ParallelConfig(data=2),
    "zero 2": ParallelConfig(shard=2, zero=2),
    "zero 3": ParallelConfig(shard=2),
    "offload": ParallelConfig(shard=2, offload=True),
    "tensor": ParallelConfig(tensor=2),
    "whole stream": ParallelConfig(tensor=2, sequence_parallel=False),
}
EXPERTS = {
    "expert": ParallelConfig(data=2, expert=2),
    "expert + shard": ParallelConfig(shard=2, expert=2),
}
CONTEXT = ParallelConfig(context=2)
BY_HEADS = ParallelConfig(context=2, context_method="ulysses")
CONTEXT_AND_EXPERT = ParallelConfig(context=2, expert=2)
EXPERTS_AND_TENSOR = ParallelConfig(shard=2, expert=2, tensor=2)
FOURS = {
    "expert + tensor + data": ParallelConfig(data=2, expert=2, tensor=2, sequence_parallel=False),
    "expert + tensor + shard, zero 2": ParallelConfig(shard=2, expert=2, tensor=2, zero=2),
    "expert + tensor + context": ParallelConfig(context=2, expert=2, tensor=2),
    "expert + context + shard": ParallelConfig(context=2, shard=2, expert=4),
    "copies of experts + context": ParallelConfig(context=2, shard=2, expert=2),
    "context + tensor": ParallelConfig(context=2, tensor=2),
    "context by heads + tensor": ParallelConfig(context=2, tensor=2, context_method="ulysses"),
    "copies of experts": ParallelConfig(data=2, shard=2, expert=2),
    "copies of shards": ParallelConfig(data=2, shard=2),
    "tensor + shard": ParallelConfig(tensor=2, shard=2),
    "tensor + data": ParallelConfig(tensor=2, data=2, sequence_parallel=False),
    "zero 2 of four": ParallelConfig(shard=4, zero=2),
}
DTYPES = {torch.float64: 1e-10, torch.float32: 1e-5}


@cache
def alone(kind: str, dtype: torch.dtype, tied: bool = True) -> Steps:
    """One process's training."""
    return train_steps(decoder(kind, tied_head=tied), ParallelConfig(), dtype=dtype)


def assert_same(ways: Iterable[ParallelConfig], dtype: torch.dtype, kinds: tuple[str, ...], tied: bool = True) -> None:
    """Every process's, of all kinds of layers, spread in all these ways over as many processes."""
    named = list(product(ways, kinds))
    cases = [(decoder(kind, tied_head=tied), parallel, {"dtype": dtype}) for parallel, kind in named]
    for results in run_processes(named[0][0].world_size, spread_all, cases):
        for (parallel, kind), found in zip(named, results, strict=True):
            errors = found.worst_errors(alone(kind, dtype, tied))
            if dtype == torch.float32:  # Adam's first steps are of a gradient's sign, whose rounding may turn it
                errors = {name: errors[name] for name in ("loss", "norm", "gradients", "loads")}
            assert max(errors.values()) < DTYPES[dtype], (parallel, kind, errors)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one(kind: str) -> None:
    assert_same(PAIRS.values(), torch.float64, (kind,))


def test_processes_that_share_heads_or_tokens_drop_what_one_drops() -> None:
    assert_same((PAIRS["tensor"], CONTEXT), torch.float64, ("dropout",))


@pytest.mark.slow
def test_processes_that_share_heads_and_tokens_drop_what_one_drops() -> None:
    assert_same((FOURS["context + tensor"],), torch.float64, ("dropout",))


def test_two_processes_share_experts() -> None:
    assert_same(EXPERTS.values(), torch.float64, ("moe", "biased", "depths"))


def test_two_processes_share_sequences() -> None:
    assert_same((CONTEXT,), torch.float64, ("dense", "moe", "biased"))


def test_two_processes_share_sequences_by_heads() -> None:
    """With patterns that choose keys by content, which a ring refuses."""
    assert_same((BY_HEADS,), torch.float64, ("moe", "chosen", "branches", "dropout"))


def test_two_processes_share_sequences_and_experts() -> None:
    assert_same((CONTEXT_AND_EXPERT,), torch.float64, ("moe", "biased"))


def test_four_processes_share_experts_and_their_hidden_units() -> None:
    assert_same((EXPERTS_AND_TENSOR,), torch.float64, ("moe", "biased", "depths"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_four_processes_are_one(kind: str) -> None:
    refusing = {"depths": ("context",), "dense": ("expert",)}.get(kind, ())
    ways = [way for way in FOURS.values() if all(getattr(way, size) == 1 for size in refusing)]
    assert_same(ways, torch.float64, (kind,))


def test_in_fp32_too() -> None:
    assert_same((PAIRS["zero 3"], PAIRS["tensor"]), torch.float32, KINDS)


def test_with_a_head_of_its_own() -> None:
    assert_same((PAIRS["zero 3"], PAIRS["tensor"]), torch.float64, ("dense",), tied=False)


def test_routers_over_the_batch_are_the_same_where_processes_share_it() -> None:
    """With data or shard above 1 they choose among each process's tokens, as among a smaller batch."""
    assert_same((PAIRS["tensor"],), torch.float64, ("soft", "choosing"))


def test_soft_slots_are_of_a_sequence_wherever_it_is() -> None:
    assert_same((PAIRS["zero 3"], PAIRS["data"]), torch.float64, ("soft",))


def test_a_spread_decoder_goes_on_with_the_tokens_that_one_process_would() -> None:
    ways = [PAIRS["whole stream"], PAIRS["zero 3"], EXPERTS["expert"]]
    assert run_processes(2, generated, ways) == [generated([]) * len(ways)] * 2


def test_the_comparison_sees_what_is_tested() -> None:
    """Clipping is active, biases move, and a wrong gradient, weight or load would show."""
    one = alone("biased", torch.float64)
    assert (one.norms > 0.1).all()
    clipped = sum(np.square(gradient).sum() for gradient in one.gradients.values()) ** 0.5
    assert clipped == pytest.approx(0.1, rel=1e-4)
    assert any(name.endswith("balancer.bias") and np.abs(bias).max() > 0 for name, bias in one.weights.items())
    other = train_steps(decoder("biased"), ParallelConfig(), gradient_clip=1e9)
    assert one.worst_errors(other)["gradients"] > 0.1
    assert one.worst_errors(other)["weights"] > 1e-6
    assert one.worst_errors(train_steps(decoder("biased"), ParallelConfig(), seed=1))["loss"] > 1e-3


def test_only_the_same_model_is_compared() -> None:
    with pytest.raises(ValueError, match="they must be in both"):
        alone("dense", torch.float64).worst_errors(alone("moe", torch.float64))
