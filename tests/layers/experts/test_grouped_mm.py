"""Torch's grouped product gives the reference's values and gradients, and is not asked for what it cannot do."""

from __future__ import annotations

import pytest
import torch
from expert_cases import (
    CHOICES,
    SETTINGS,
    Problem,
    assert_as_accurate,
    assert_same,
    poisoned,
    tokens_and_choices,
)
from hypothesis import given
from hypothesis import settings as examples

every_choice = pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)


@every_choice
def test_it_is_the_reference_in_fp32(choices: list[list[int]]) -> None:
    for setting in SETTINGS:
        problem = Problem(choices, **setting)
        assert_same(
            problem.run("grouped_mm", torch.float32), problem.run("reference", torch.float32), atol=1e-5, rtol=1e-5
        )


@every_choice
def test_bf16_errs_at_most_twice_as_much_as_the_reference_in_bf16(choices: list[list[int]]) -> None:
    for setting in SETTINGS:
        problem = Problem(choices, **setting)
        ours, theirs = (problem.run(backend, torch.bfloat16) for backend in ("grouped_mm", "reference"))
        assert_as_accurate(ours, theirs, problem.run("reference", torch.float64))


@given(choices=tokens_and_choices())
@examples(max_examples=30)
def test_any_choices(choices: list[list[int]]) -> None:
    problem = Problem(choices, bias=True)
    assert_same(problem.run("grouped_mm", torch.float32), problem.run("reference", torch.float32), atol=1e-5, rtol=1e-5)


@every_choice
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_torch_leaves_unwritten_are_not_read(choices: list[list[int]], dtype: torch.dtype) -> None:
    for setting in SETTINGS:
        with poisoned():
            found = Problem(choices, **setting).run("grouped_mm", dtype)
        used = {e for experts in choices for e in experts if e >= 0}
        for name, tensor in found.items():
            assert torch.isfinite(tensor).all(), name
        for name in found.keys() & {"d_first", "d_second", "d_first_bias", "d_second_bias"}:
            for expert in range(7):
                assert (found[name][expert] != 0).any() == (expert in used), (name, expert)


@pytest.mark.parametrize(
    ("dim", "hidden_dim", "dtype", "named"),
    [
        (8, 8, torch.float64, r"dtype=torch\.float64: .*grouped_mm"),
        (8, 6, torch.float32, "^hidden_dim=6: it must be a multiple of 4"),
        (4, 8, torch.bfloat16, "^dim=4: it must be a multiple of 8"),
    ],
)
def test_what_it_cannot_take_is_named(dim: int, hidden_dim: int, dtype: torch.dtype, named: str) -> None:
    problem = Problem([[0], [1]], dim=dim, hidden_dim=hidden_dim)
    with pytest.raises(ValueError, match=named):
        problem.run("grouped_mm", dtype)


@pytest.mark.parametrize(("dim", "hidden_dim", "dtype"), [(4, 4, torch.float32), (8, 8, torch.bfloat16)])
def test_the_smallest_rows_it_takes(dim: int, hidden_dim: int, dtype: torch.dtype) -> None:
    for setting in SETTINGS:
        problem = Problem([[0, 2], [1, 0]], **setting, dim=dim, hidden_dim=hidden_dim)
        exact = problem.run("reference", torch.float64)
        assert_as_accurate(problem.run("grouped_mm", dtype), problem.run("reference", dtype), exact)
