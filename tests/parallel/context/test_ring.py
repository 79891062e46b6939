"""Ring attention gives what one process gives: outputs, log-sum-exps and gradients, for every pattern and setting."""

from __future__ import annotations

from typing import Any

import context_attention_work
import context_patterns
import pytest
import torch
from gloo import run_processes

from toolkit.attention import Full, PerHead, RandomBlocks
from toolkit.parallel.context import Layout, RingAttention, schedule


@pytest.mark.parametrize(
    ("ranks", "rows"),
    [(2, 2), (4, 1), pytest.param(2, 8, marks=pytest.mark.slow), pytest.param(4, 8, marks=pytest.mark.slow)],
)
def test_parts_equal_the_whole(ranks: int, rows: int) -> None:
    for errors in run_processes(ranks, context_attention_work.largest_errors, "ring", rows):
        assert len(errors) == rows * len(context_patterns.by_position())
        wrong = {name: error for name, error in errors.items() if not error < 1e-10}
        assert not wrong


@pytest.fixture(scope="module")
def facts() -> list[dict[str, Any]]:
    """By rank of two."""
    return run_processes(2, context_attention_work.facts)


def test_a_second_run_gives_the_same_bits(facts: list[dict[str, Any]]) -> None:
    for found in facts:
        assert len(found["same"]) == 4
        assert all(found["same"].values()), found["same"]


def test_half_precision_is_about_as_exact_as_in_one_process(facts: list[dict[str, Any]]) -> None:
    for found in facts:
        assert len(found["errors"]) == 3 * 5
        for name, (parts, single, four_ulp) in found["errors"].items():
            assert parts <= 2 * single + four_ulp, name


def test_messages_are_under_way_while_a_part_is_computed(facts: list[dict[str, Any]]) -> None:
    for found in facts:
        assert found["events"] == ["start", "compute", "compute"]


@pytest.mark.parametrize(
    "pattern", [RandomBlocks(1, 4, seed=0), Full() & ~RandomBlocks(1, 4, seed=0), PerHead([RandomBlocks(1, 4, seed=0)])]
)
def test_draws_that_depend_on_the_number_of_keys_are_refused(pattern: object) -> None:
    with pytest.raises(ValueError, match=r"pattern=RandomBlocks.*causal=True\).*context_method='ulysses'"):
        schedule(pattern, Layout("contiguous", 2, 8), 0)


class GroupOf2:
    """Knows its size and a rank: enough for what is refused before anything is sent."""

    def size(self) -> int:
        return 2

    def rank(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_start": 0}, r"q_start and kv_start=\(0, 0\): it must be left out: the layout says"),
        ({"backend": "reference"}, "backend='reference': it must be one of 'auto', 'triton', 'blockwise'"),
        ({"k": torch.zeros(1, 2, 6, 8), "v": torch.zeros(1, 2, 6, 8)}, "k length=6: it must be q's, 4"),
        ({"v": torch.zeros(1, 1, 4, 8)}, r"v \(kv_heads, kv_len\)=\(1, 4\): it must be k's"),
        ({"v": torch.zeros(1, 2, 4, 8).half()}, "v.dtype=torch.float16: it must be q's"),
        ({"sink_logits": torch.zeros(3)}, r"sink_logits.shape=\(3,\).*\(heads,\) = \(4,\)"),
        ({"alibi_slopes": torch.zeros(4, requires_grad=True)}, "alibi_slopes.requires_grad=True: it must be False"),
        ({"dropout_p": 1.0}, "dropout_p=1.0: it must be at least 0 and below 1"),
        ({"softcap": -1.0}, "softcap=-1.0: it must be positive"),
        ({"pattern": PerHead([Full()] * 3)}, "pattern heads=3: it must be 1 or q's"),
        ({"q": torch.zeros(1, 4, 3, 8), "k": torch.zeros(1, 2, 3, 8), "v": torch.zeros(1, 2, 3, 8)}, "multiple of 4"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_sent(changes: dict[str, Any], message: str) -> None:
    given = {"q": torch.zeros(1, 4, 4, 8), "k": torch.zeros(1, 2, 4, 8), "v": torch.zeros(1, 2, 4, 8), **changes}
    with pytest.raises(ValueError, match=message):
        RingAttention(GroupOf2())(**given)
