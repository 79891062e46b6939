"""The layout of a call: what is read where it lies, what is copied, and which tile a product gets."""

from __future__ import annotations

import pytest
import torch
from expert_kernel_cases import Case, build
from torch import Tensor

from toolkit.layers.experts.kernels.call import Call, laid_out
from toolkit.layers.experts.kernels.config import Tile
from toolkit.routing import sort_by_expert, token_starts


@pytest.mark.parametrize(
    ("x", "read"),
    [
        (torch.zeros(5, 16), True),
        (torch.zeros(5, 32)[:, :16], True),
        (torch.zeros(5, 17)[:, :16], False),  # rows would no longer start at a multiple of 16 bytes
        (torch.zeros(5, 17), True),  # nor do a copy's
        (torch.zeros(16, 5).t(), False),
    ],
)
def test_what_can_be_read_as_well_as_a_copy_is_not_copied(x: Tensor, read: bool) -> None:
    made = laid_out(x)
    assert (made is x) == read and made.stride(1) == 1


def call(case: Case, tiles: dict[str, Tile] | None = None) -> Call:
    problem, _ = build(case)
    rows = sort_by_expert(problem.token, problem.expert, 5)
    starts = token_starts(problem.token, len(problem.x))
    return Call.of(problem.x, problem.weight, rows, starts, problem.weights, problem.activation, tiles)


def test_sizes_are_those_of_the_parameters() -> None:
    assert call(Case("swiglu", sizes=(24, 20))).sizes == (24, 40, 20)
    assert call(Case("gelu", sizes=(24, 20))).sizes == (24, 20, 20)


def test_gates_are_used_in_fp32() -> None:
    made = call(Case(dtype=torch.float16, own_dtype=True))
    assert made.weight.dtype == torch.float32


def test_the_callers_tile_wins() -> None:
    made = call(Case(sizes=(72, 48)), {"product": Tile(16, 32, 16)})
    assert made.column_tiles("product", 100, 48) == 4
    assert made.column_tiles("hidden", 48, 72) == -(-48 // 32)  # the shipped one


def test_fp32_is_rounded_only_if_the_user_allows_it() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed, precision in ((False, "ieee"), (True, "tf32")):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            assert call(Case()).arguments()["PRECISION"] == precision
            assert call(Case(dtype=torch.float16)).arguments()["PRECISION"] == "ieee"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
