"""Values and gradients against the fp64 textbook, from poisoned memory; and how a pass becomes launches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from expert_kernel_cases import Case, build, pairwise
from expert_kernel_textbook import Problem
from interpreted_process import Interpreter

from toolkit.kernels.launch import Recorded, recording
from toolkit.layers.experts.kernels.config import KERNELS, Tile
from toolkit.layers.experts.kernels.launch import backward, forward
from toolkit.layers.experts.kernels.plan import most_tiles
from toolkit.routing import sort_by_expert, token_starts


@pytest.mark.parametrize("case", pairwise(seed=1), ids=str)
def test_outputs_and_gradients_are_those_of_the_textbook(interpreter: Interpreter, case: Case) -> None:
    assert interpreter("check", case) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_reruns_and_recomputation_are_equal_to_the_bit(interpreter: Interpreter, dtype: torch.dtype) -> None:
    interpreter("check_twice", Case("clamped_swiglu", "unassigned", dtype=dtype, bias=True))


@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_the_shipped_tiles(interpreter: Interpreter, activation: str) -> None:
    assert interpreter("check_backend", Case(activation, sizes=(72, 48), bias=True)) <= 1


def record(problem: Problem, keep: bool = True) -> tuple[list[Recorded], list[Recorded]]:
    """The launches of forward and of backward on tiles of 16."""
    rows = sort_by_expert(problem.token, problem.expert, len(problem.weights.first))
    starts = token_starts(problem.token, len(problem.x))
    inputs = problem.x, problem.weight, rows, starts, problem.weights, problem.activation
    tiles = dict.fromkeys(KERNELS, Tile(16, 16, 16))
    with recording() as ahead:
        _, hidden = forward(*inputs, keep, tiles=tiles)
    with recording() as back:
        backward(problem.d_out, *inputs, hidden, tiles=tiles)
    return ahead, back


def names(launches: list[Recorded]) -> list[str]:
    return [launch.name for launch in launches]


def test_forward_is_three_launches() -> None:
    problem, _ = build(Case("swiglu", "top_2", (24, 20)))
    ahead, _ = record(problem)
    assert names(ahead) == ["hidden", "product", "combine"]
    hidden, product, combine = ahead
    row_tiles = most_tiles(len(problem.token), 5, 16)
    assert hidden.grid == (row_tiles * 2, 1, 1) and product.grid == (row_tiles * 2, 1, 1)
    assert combine.grid == (len(problem.x), 1, 1)
    assert hidden.arguments["hidden"] is not None and product.arguments["left"] is hidden.arguments["act"]
    assert hidden.arguments["row_tiles"] is product.arguments["row_tiles"]  # counted once


@pytest.mark.parametrize(
    ("bias", "keep", "expected"),
    [
        (False, True, ["gradient", "weight", "outer", "outer", "product", "combine"]),
        (True, True, ["gradient", "weight", "outer", "outer", "bias", "bias", "product", "combine"]),
        (False, False, ["hidden", "gradient", "weight", "outer", "outer", "product", "combine"]),
    ],
)
def test_backward_computes_what_it_needs_and_no_more(bias: bool, keep: bool, expected: list[str]) -> None:
    ahead, back = record(build(Case("gelu", "top_2", bias=bias))[0], keep)
    assert names(back) == expected
    assert (ahead[0].arguments["hidden"] is None) == (not keep)
    if not keep:
        assert back[0].arguments["act"] is None and back[0].arguments["hidden"] is not None
    assert back[-1].arguments["weight"] is None  # d_hidden holds it already


def test_nothing_as_large_as_a_token_for_each_triple_is_kept() -> None:
    problem, _ = build(Case("swiglu", "top_2", (40, 16)))
    rows = sort_by_expert(problem.token, problem.expert, 5)
    starts = token_starts(problem.token, len(problem.x))
    with recording():
        for keep, kept in ((True, len(problem.token)), (False, 0)):
            inputs = problem.x, problem.weight, rows, starts, problem.weights, problem.activation
            out, hidden = forward(*inputs, keep)
            assert out.shape == problem.x.shape and hidden.shape == (kept, 32)


def test_nothing_is_launched_for_nothing() -> None:
    """Without triples only zeros are written: to the tokens and to the parameters' gradients."""
    ahead, back = record(build(Case("swiglu", "no_triples", bias=True))[0])
    assert names(ahead) == ["combine"]
    assert names(back) == ["outer", "outer", "bias", "bias", "combine"]
    ahead, back = record(build(Case("swiglu", "no_tokens"))[0])
    assert names(ahead) == [] and names(back) == ["outer", "outer"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(23, 24, dtype=torch.float64)}, "dtype=torch.float64"),
        ({"x": torch.zeros(23, 24, dtype=torch.float16)}, "first.dtype=torch.float32: it must be torch.float16"),
        ({"x": torch.zeros(23, 2, 24)}, r"x.shape=\(23, 2, 24\): it must be \(tokens, dim\)"),
        ({"x": torch.zeros(23, 16)}, r"first.shape=\(5, 40, 24\): it must be \(5, 40, 16\)"),
        ({"weight": torch.zeros(45)}, r"weight.shape=\(45,\): it must be \(46,\)"),
        ({"d_out": torch.zeros(23, 16)}, r"d_out.shape=\(23, 16\)"),
    ],
)
def test_bad_input_is_named(change: dict[str, torch.Tensor], message: str) -> None:
    problem, _ = build(Case(load="top_2"))
    with pytest.raises(ValueError, match=message):
        record(replace(problem, **change))  # type: ignore[arg-type]


def test_hidden_of_another_length_is_named() -> None:
    problem, _ = build(Case(load="top_2"))
    rows, starts = sort_by_expert(problem.token, problem.expert, 5), token_starts(problem.token, 23)
    inputs = problem.x, problem.weight, rows, starts, problem.weights, problem.activation
    with pytest.raises(ValueError, match=r"hidden.shape=\(3, 40\): it must be \(0, 40\) or \(46, 40\)"):
        backward(problem.d_out, *inputs, torch.zeros(3, 40))
