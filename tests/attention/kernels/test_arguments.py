"""What the launches make of passes: first and later heads, padded slots, columns that somebody sees; bad input."""

from __future__ import annotations

import pytest
import torch
from kernel_passes import BUILDERS, mask_of, plane

from toolkit.attention.kernels.arguments import (
    check_inputs,
    launches,
    pass_arguments,
    scoring_arguments,
    with_unit_stride,
)
from toolkit.attention.plan import Pass
from toolkit.attention.scoring import Scoring

CPU = torch.device("cpu")


def part_for(heads: tuple[int, ...] | None) -> Pass:
    bound = plane(torch.ones(4, 1))
    return Pass(None, None, 0 * bound, bound, 4, heads)


def flags(heads: torch.Tensor | None, n: int) -> list[int]:
    return list(range(n)) if heads is None else heads.nonzero()[:, 0].tolist()


def test_a_pass_that_begins_some_heads_and_continues_others_is_launched_twice() -> None:
    found = launches([part_for((0,)), part_for(None), part_for((1, 2))], 3, CPU)
    assert [(flags(launch.heads, 3), launch.continues) for launch in found] == [
        ([0], False),
        ([1, 2], False),
        ([0], True),
        ([1, 2], True),
    ]


def test_one_pass_for_all_heads_needs_no_flags() -> None:
    (launch,) = launches([part_for(None)], 2, CPU)
    assert launch.heads is None and not launch.continues


def test_a_head_without_a_pass_is_refused() -> None:
    with pytest.raises(ValueError, match=r"passes='passes for heads \[0, 2\]': it must be for every head of 3"):
        launches([part_for((0, 2))], 3, CPU)
    with pytest.raises(ValueError, match="passes"):
        launches([], 1, CPU)


def test_slots_are_padded_to_a_power_of_two_with_empty_ones() -> None:
    (part,) = BUILDERS["three_slots"](2, 2, 9, 20)
    arguments = pass_arguments(part, 0)
    assert arguments["SLOTS"] == 4 and arguments["first"].shape == (2, 2, 9, 4)
    assert torch.equal(arguments["first"][..., :3], part.first)
    assert bool((arguments["stop"][..., 3] <= arguments["first"][..., 3]).all())


@pytest.mark.parametrize("passes", BUILDERS)
def test_seen_columns_are_those_of_the_mask(passes: str) -> None:
    parts = BUILDERS[passes](2, 2, 20, 31)
    seen = torch.zeros(2, 31, dtype=torch.bool)
    for part in parts:
        places = pass_arguments(part, 0)["seen"].bool().expand(2, -1)
        columns = torch.arange(31)[None] if part.columns is None else part.columns[:, 0]
        for entry, (places_of, columns_of) in enumerate(zip(places, columns.expand(2, -1), strict=True)):
            seen[entry, columns_of[places_of].long()] = True
    assert torch.equal(seen, mask_of(parts, 2, 2, 20, 31).any(2).any(1))


def test_planes_of_one_have_stride_zero_and_are_made_once() -> None:
    (shared,) = BUILDERS["causal"](2, 2, 9, 20)
    (own,) = BUILDERS["three_slots"](2, 2, 9, 20)
    assert pass_arguments(shared, 0)["bounds_batch"] == pass_arguments(shared, 0)["bounds_head"] == 0
    assert (pass_arguments(own, 0)["bounds_batch"], pass_arguments(own, 0)["bounds_head"]) == (2 * 9 * 4, 9 * 4)
    assert pass_arguments(own, 0)["first"] is pass_arguments(own, 0)["first"]


@pytest.mark.parametrize("p", [0.0, 2**-33, 0.25, 0.5, 0.999])
def test_the_threshold_is_the_chance_in_32_bits(p: float) -> None:
    threshold = scoring_arguments(Scoring(1.0, dropout_p=p, seed=torch.zeros(1)), 0, 0)["threshold"]
    assert -(2**31) <= threshold < 2**31
    assert threshold % 2**32 == round(p * 2**32)


@pytest.mark.parametrize(
    ("dtype", "dims", "scoring", "name"),
    [
        (torch.float64, (16, 16), Scoring(1.0), "dtype=torch.float64"),
        (torch.float32, (8, 16), Scoring(1.0), "head_dim=8"),
        (torch.float32, (16, 8), Scoring(1.0), "value_dim=8"),
        (torch.float32, (16, 16), Scoring(1.0, dropout_p=1.0), "dropout_p=1.0"),
        (torch.float32, (16, 16), Scoring(1.0, dropout_p=0.5), "seed=None"),
    ],
)
def test_what_the_kernels_cannot_take_is_named(
    dtype: torch.dtype, dims: tuple[int, int], scoring: Scoring, name: str
) -> None:
    q, v = (torch.zeros(1, 1, 2, dim, dtype=dtype) for dim in dims)
    with pytest.raises(ValueError, match=name):
        check_inputs(q, q, v, scoring)


def test_only_a_strided_last_axis_is_copied() -> None:
    x = torch.zeros(2, 5, 3, 16).transpose(1, 2)
    assert with_unit_stride(x) is x
    assert with_unit_stride(x.mT).stride(-1) == 1
