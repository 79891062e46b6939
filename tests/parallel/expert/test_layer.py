"""A MoE whose experts are shared gives what one process gives: outputs, gradients, statistics and biases."""

from __future__ import annotations

from typing import Any

import expert_layer_work
import pytest
import torch
from gloo import run_processes

NAMES = list(expert_layer_work.CASES)
SOME = ["losses", "uneven", "one expert", "last rank has none", "zero experts"]


@pytest.mark.parametrize(
    ("ranks", "copies", "names"),
    [
        (2, 1, NAMES),
        pytest.param(4, 1, SOME, marks=pytest.mark.slow),
        pytest.param(4, 2, NAMES, marks=pytest.mark.slow),
    ],
)
def test_parts_equal_the_whole(ranks: int, copies: int, names: list[str]) -> None:
    for found in run_processes(ranks, expert_layer_work.all_errors, names, copies):
        assert list(found) == names
        for name, errors in found.items():
            wrong = {path: e for path, e in errors.items() if not e < (1e-6 if path.startswith("fp32") else 1e-10)}
            assert not wrong, name


@pytest.fixture(scope="module")
def facts() -> list[dict[str, Any]]:
    """By rank of two."""
    return run_processes(2, expert_layer_work.facts)


def test_whatever_a_process_draws_its_tokens_get_what_all_experts_in_it_would_give(facts: list[dict[str, Any]]) -> None:
    for found in (each["errors_of_drawn"] for each in facts):
        assert list(found) == list(expert_layer_work.DRAWN)
        assert max(found.values()) < 1e-10, found


def test_single_precision_and_autocast_are_about_as_exact_as_one_process(facts: list[dict[str, Any]]) -> None:
    for found in (each["single_precision"] for each in facts):
        assert found["cpu"] < 1e-6
        assert found["grouped_mm"] < 1e-6
        assert found["autocast"] < 4 * 2**-8  # weighted outputs are rounded to bf16 before they are sent and summed
        assert not any(value for name, value in found.items() if "dtype" in name)


def test_experts_in_fp32_may_compute_in_bf16(facts: list[dict[str, Any]]) -> None:
    for dtypes, output, gradient in (found["computed_in_half_precision"] for found in facts):
        assert dtypes == [torch.bfloat16, torch.float32]
        assert output < 4 * 2**-8
        assert gradient < 4 * 2**-8


def test_inference_mode_gives_what_one_process_gives(facts: list[dict[str, Any]]) -> None:
    assert max(found["evaluated_in_inference_mode"] for found in facts) < 1e-6


def test_experts_without_a_token_have_zero_gradients_and_not_none(facts: list[dict[str, Any]]) -> None:
    (first, largest), (last, zero) = (found["zero_gradients"] for found in facts)
    assert first
    assert last
    assert largest > 0
    assert zero == 0


def test_shared_experts_are_computed_while_tokens_are_on_their_way(facts: list[dict[str, Any]]) -> None:
    there = ["start", "shared", "land", "experts", "start", "land"]
    back = ["start", "land", "experts", "start", "shared", "land"]
    for found in facts:
        assert found["order_of_events"] == [*there, "backward", *back]


def test_what_is_counted_is_what_the_formula_says(facts: list[dict[str, Any]]) -> None:
    for counted, predicted in (pair for found in facts for pair in found["bytes_sent"]):
        assert counted == predicted > 0


@pytest.mark.slow
def test_what_four_processes_count_is_what_the_formula_says() -> None:
    for counted, predicted in (pair for found in run_processes(4, expert_layer_work.bytes_sent) for pair in found):
        assert counted == predicted > 0


def test_over_all_processes_a_triple_crosses_four_times(facts: list[dict[str, Any]]) -> None:
    columns = zip(*(found["crossing_of_all"] for found in facts), strict=True)
    sent, leaving, (row, *_), counts = (list(column) for column in columns)
    gate = 4  # bytes, and it crosses forward and backward, with the token only
    assert sum(sent) == sum(leaving) * (4 * row + 2 * gate) + sum(counts)


def test_what_cannot_be_shared_is_refused_by_name(facts: list[dict[str, Any]]) -> None:
    found = facts[0]["refusals"]
    assert found["uneven"].startswith("num_experts=7: it must be a multiple of the 2 processes that share them: 7 / 2")
    assert found["soft"].startswith("module.router='SoftRouter': it must be one that chooses experts")
    assert found["twice"].startswith("module.dispatcher='AllToAllDispatcher': it must be LocalDispatcher")
    assert found["dense"] == "module='Linear': it must be one with a MoE"
    assert "MixtureOfDepths with a MoE in it" in found["depths"]
    assert found["untouched"] == "['Parameter', 'Parameter']"
    assert found["not shared"].startswith("experts.gate_up_proj='Parameter': it must be shared over processes")
    assert "once only" in found["twice differentiated"]
