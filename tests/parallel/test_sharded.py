"""What sharding holds and when, in which dtype, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from gloo import run_processes
from sharded_work import after_a_forward, held, left_alone, seen_dtypes
from strategies_work import decoder

from toolkit.models import Decoder
from toolkit.parallel import ParallelConfig


@pytest.mark.parametrize(
    "parallel", [ParallelConfig(shard=2), ParallelConfig(data=2, shard=2), ParallelConfig(shard=4)]
)
def test_parameters_are_held_once_by_every_copy(parallel: ParallelConfig) -> None:
    whole = sum(parameter.numel() for parameter in Decoder(decoder("moe")).parameters())
    results = run_processes(parallel.world_size, held, "moe", parallel)
    assert sum(here for here, _ in results) == parallel.data_size * whole
    assert {everywhere for _, everywhere in results} == {whole}


@pytest.mark.parametrize(("zero", "layers_cut"), [(2, False), (3, True)])
def test_layers_are_given_back_after_their_forward_with_zero_3(zero: int, layers_cut: bool) -> None:
    """What the root holds is needed first in the backward pass, and stays."""
    results = run_processes(2, after_a_forward, ParallelConfig(shard=2, zero=zero))
    assert results == [[layers_cut, False, True, True]] * 2


def test_ignored_parameters_keep_gradients_of_their_own_process() -> None:
    (plain, mine, norm), (also, others, same) = run_processes(2, left_alone)
    assert plain and also
    assert mine != others
    assert norm == same
    expected = []
    for rank in range(2):
        torch.manual_seed(0)
        model = Decoder(decoder("moe"))
        model(torch.arange(16).view(2, 8) + rank).logits.square().sum().backward()
        expected.append(model)
    for here, model in zip((mine, others), expected, strict=True):
        gradient = model.blocks[1].feed_forward.experts.down_proj.grad  # type: ignore[union-attr]
        assert here == pytest.approx(gradient.flatten().tolist(), rel=1e-4, abs=1e-5)  # type: ignore[operator, union-attr]
    average = torch.stack([model.norm.weight.grad for model in expected]).mean(0)  # type: ignore[misc]
    assert norm == pytest.approx(average.tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("gather_dtype", "dtypes"),
    [
        ("parameter", ("torch.float32", "torch.float32", "torch.float32")),
        ("bf16", ("torch.bfloat16", "torch.float32", "torch.float32")),
    ],
)
def test_parameters_are_gathered_in_the_dtype_asked_for(gather_dtype: str, dtypes: tuple[str, str, str]) -> None:
    assert run_processes(2, seen_dtypes, gather_dtype) == [dtypes] * 2
