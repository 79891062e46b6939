"""The CPU backend is the reference in value and every gradient, whatever the routing, and keeps only what it must."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expert_cases import (
    CHOICES,
    EXPERTS,
    SETTINGS,
    Problem,
    assert_as_accurate,
    assert_same,
    poisoned,
    settings_id,
    tokens_and_choices,
)
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from toolkit.layers.experts import cpu

both = pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
every_choice = pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=settings_id)


@every_choice
@both
def test_it_is_the_reference_in_fp64_and_fp32(choices: list[list[int]], recompute: bool) -> None:
    for setting in SETTINGS:
        problem = Problem(choices, **setting)
        for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            ours, expected = problem.run("cpu", dtype, recompute), problem.run("reference", dtype)
            assert_same(ours, expected, atol=error, rtol=error)


@every_choice
@both
def test_bf16_errs_at_most_twice_as_much_as_the_reference_in_bf16(choices: list[list[int]], recompute: bool) -> None:
    for setting in SETTINGS:
        problem = Problem(choices, **setting)
        ours, theirs = problem.run("cpu", torch.bfloat16, recompute), problem.run("reference", torch.bfloat16)
        assert_as_accurate(ours, theirs, problem.run("reference", torch.float64))


@every_setting
@both
@pytest.mark.parametrize("rows", [1, 64])
def test_chunks_and_padding_change_nothing(
    setting: dict[str, Any], recompute: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 75 tokens of one expert in chunks of 13, each padded to 64 rows of which the next chunk overwrites some.
    monkeypatch.setattr(cpu, "CHUNK", 13)
    monkeypatch.setattr(cpu, "_multiple", lambda dtype: rows)
    for choices in (CHOICES["all to one"], CHOICES["random"], CHOICES["dropped"]):
        problem = Problem(choices, **setting)
        chunks = list(cpu._chunks([75, 0, 33], torch.float64))
        assert [chunk.used for chunk in chunks] == [13, 13, 13, 13, 13, 10, 13, 13, 7]
        with poisoned():
            ours = problem.run("cpu", torch.float64, recompute)
        assert_same(ours, problem.run("reference", torch.float64), atol=1e-12)


@both
def test_chunks_in_bf16(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "CHUNK", 64)
    for setting in SETTINGS:
        problem = Problem([[n % 2, 2] for n in range(200)], **setting)
        with poisoned():
            ours = problem.run("cpu", torch.bfloat16, recompute)
        exact = problem.run("reference", torch.float64)
        assert_as_accurate(ours, problem.run("reference", torch.bfloat16), exact)


@given(
    choices=tokens_and_choices(),
    setting=st.sampled_from(SETTINGS),
    recompute=st.booleans(),
    dim=st.integers(1, 6),
    hidden_dim=st.integers(1, 5),
)
@examples(max_examples=60)
def test_any_shape(
    choices: list[list[int]], setting: dict[str, Any], recompute: bool, dim: int, hidden_dim: int
) -> None:
    problem = Problem(choices, **setting, dim=dim, hidden_dim=hidden_dim)
    ours, expected = problem.run("cpu", torch.float64, recompute), problem.run("reference", torch.float64)
    assert_same(ours, expected, atol=1e-11, rtol=1e-11)


@every_setting
def test_gradcheck(setting: dict[str, Any]) -> None:
    problem = Problem([[1, 0], [2], [], [2, -1]], **setting, dim=3, hidden_dim=2, num_experts=4)
    leaves = problem.leaves(torch.float64)
    for recompute in (False, True):

        def call(*tensors: Tensor, recompute: bool = recompute) -> Tensor:
            return problem.compute("cpu", dict(zip(leaves, tensors, strict=True)), recompute)

        assert torch.autograd.gradcheck(call, tuple(leaves.values()))


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_nothing_uninitialised_is_read_and_an_expert_without_tokens_gets_exactly_zero(
    dtype: torch.dtype, recompute: bool
) -> None:
    for setting in SETTINGS:
        for choices in CHOICES.values():
            with poisoned():
                found = Problem(choices, **setting).run("cpu", dtype, recompute)
            used = {e for experts in choices for e in experts if e >= 0}
            assert all(torch.isfinite(tensor).all() for tensor in found.values())
            for name in found.keys() & {"d_first", "d_second", "d_first_bias", "d_second_bias"}:
                for expert in range(EXPERTS):
                    assert (found[name][expert] != 0).any() == (expert in used), (name, expert)


@both
def test_kept_for_backward_are_the_input_and_the_preactivations(recompute: bool) -> None:
    problem = Problem([[0, 5, 2], [1, 2, 3]] * 60, bias=True, dim=40, hidden_dim=48)
    tensors = problem.leaves(torch.float32)
    parameters = {tensors[name].data_ptr() for name in tensors.keys() - {"x", "gates"}}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        problem.compute("cpu", tensors, recompute)
    n, tokens, width = 360, 120, 2 * 48
    wide = sorted(tuple(tensor.shape) for tensor in kept.values() if tensor.ndim == 2 and tensor.numel())
    assert wide == ([(tokens, 40)] if recompute else [(tokens, 40), (n, width)])
    size = sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
    # besides: a gate of 4 bytes and three integers of 8 a triple, and the experts' ends
    assert size <= 4 * (tokens * 40 + (0 if recompute else n * width)) + n * (4 + 3 * 8) + 4 * EXPERTS


def test_16_bit_sums_over_a_tokens_experts_are_in_fp32() -> None:
    # 256 experts of output 1 and one of 256: in bf16 the ones would be lost one by one.
    experts = [[0, *[1] * 256]]
    problem = Problem(experts, bias=True, num_experts=2)
    tensors = problem.tensors(torch.bfloat16)
    for name in ("first", "second", "first_bias"):
        tensors[name].zero_()
    tensors["gates"].fill_(1)
    tensors["second_bias"][0], tensors["second_bias"][1] = 256, 1
    out = problem.compute("cpu", tensors)
    assert (out == 512).all()
