"""Patterns given as tensors: blocks that a block sees, stretches of keys that a query sees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pattern_cases import as_on_a_gpu
from torch import Tensor

from toolkit.attention.patterns import BlockMask, Causal, Full, KeyRanges, Pattern
from toolkit.attention.plan import make_plan, plan

BLOCKS = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.5


def spread(blocks: Tensor, block: int) -> Tensor:
    """Every block as block x block pairs."""
    return blocks.repeat_interleave(block, -2).repeat_interleave(block, -1)


@pytest.mark.parametrize("block", [1, 3, 16])
@pytest.mark.parametrize("lead", [(2, 3), (1, 3), (2, 1), (1, 1)])
def test_a_block_mask_is_its_blocks_spread_out(block: int, lead: tuple[int, int]) -> None:
    blocks = BLOCKS[: lead[0], : lead[1]]
    pattern, whole = BlockMask(blocks, block), spread(blocks, block)
    assert pattern.planes == lead
    assert torch.equal(pattern.mask(4 * block, 5 * block, 0), whole)
    assert pattern.area(4 * block, 5 * block, 0) == int(whole.sum())


def test_leading_axes_may_be_left_out() -> None:
    assert torch.equal(BlockMask(BLOCKS[0, 0], 3).mask(12, 15, 0), spread(BLOCKS[0, 0], 3))
    by_head = BlockMask(BLOCKS[0], 3)
    assert by_head.planes == (1, 3)
    assert torch.equal(by_head.mask(12, 15, 0)[0], spread(BLOCKS[0], 3))


def test_a_head_is_its_plane() -> None:
    pattern = BlockMask(BLOCKS, 3)
    for head in range(3):
        assert torch.equal(pattern.for_head(head).mask(12, 15, 0), pattern.mask(12, 15, 0)[:, head : head + 1])
    shared = BlockMask(BLOCKS[:, :1], 3)
    assert shared.for_head(2) is shared


def test_blocks_count_from_position_0_wherever_queries_and_keys_start() -> None:
    pattern = BlockMask(BLOCKS, 3)
    assert torch.equal(pattern.mask(4, 6, 7, 5), pattern.mask(12, 15, 0)[..., 7:11, 5:11])


def test_blocks_past_the_last_token_say_nothing() -> None:
    larger = torch.ones(9, 9, dtype=torch.bool)
    larger[:2, :2] = BLOCKS[0, 0, :2, :2]
    part = BlockMask(BLOCKS[0, 0, :2, :2], 4)
    assert torch.equal(BlockMask(larger, 4).mask(7, 7), part.mask(7, 7))
    assert BlockMask(larger, 4).area(7, 7) == part.area(7, 7)


def test_all_blocks_is_full_and_none_is_nothing() -> None:
    everything = torch.ones(3, 3, dtype=torch.bool)
    assert torch.equal(BlockMask(everything, 4).mask(10, 10), Full().mask(10, 10))
    assert BlockMask(~everything, 4).area(10, 10) == 0


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_key_ranges_are_the_stretches_they_say(dtype: torch.dtype) -> None:
    first = torch.tensor([0, 2, 4, -3, 9], dtype=dtype)
    stop = torch.tensor([2, 2, 99, 1, 3], dtype=dtype)
    seen = [[0, 1], [], [4, 5, 6], [0], []]
    pattern = KeyRanges(first, stop)
    mask = pattern.mask(5, 7, 0)
    assert [row.nonzero().flatten().tolist() for row in mask] == seen
    assert pattern.area(5, 7, 0) == 6
    assert torch.equal(pattern.mask(2, 7, 2), mask[2:4]), "entry i is for position i"


def test_key_ranges_differ_by_row_and_head_and_may_be_several() -> None:
    generator = torch.Generator().manual_seed(1)
    first = torch.randint(0, 12, (2, 3, 6, 4), generator=generator)
    stop = first + torch.randint(-1, 4, first.shape, generator=generator)
    key = torch.arange(12)
    whole = ((key >= first[..., None]) & (key < stop[..., None])).any(dim=3)
    pattern = KeyRanges(first, stop)
    assert torch.equal(pattern.mask(6, 12, 0), whole)
    assert pattern.area(6, 12, 0) == int(whole.sum())
    assert torch.equal(pattern.for_head(2).mask(6, 12, 0), whole[:, 2:])
    one = KeyRanges(first[..., 0], stop[..., 0])
    assert torch.equal(one.mask(6, 12, 0), (key >= first[..., :1]) & (key < stop[..., :1]))


def test_causal_as_ranges_is_causal() -> None:
    place = torch.arange(9)
    assert torch.equal(KeyRanges(torch.zeros_like(place), place + 1).mask(9, 9), Causal().mask(9, 9))


def patterns_on(device: str) -> list[Pattern]:
    ranges = torch.zeros(2, 3, 64, dtype=torch.int32, device=device)
    return [
        BlockMask(torch.ones(2, 3, 4, 4, dtype=torch.bool, device=device), 16),
        KeyRanges(ranges, ranges + 5),
        ~KeyRanges(ranges, ranges + 5) & Causal(),
    ]


def test_they_are_planned_where_their_tensors_are_without_waiting() -> None:
    # Tensors on "meta" have no values: whatever asked for one would raise.
    for pattern in patterns_on("meta"):
        assert pattern.device == torch.device("meta")
        for part in plan(pattern, 64, 64):
            assert part.first.device == torch.device("meta")
            assert part.first.shape[:3] == (2, 3, 64)
    for pattern in patterns_on("cpu"):
        with as_on_a_gpu():
            make_plan(pattern, 64, 64)


def test_they_are_equal_to_themselves_only() -> None:
    one, other = BlockMask(BLOCKS, 2), BlockMask(BLOCKS, 2)
    assert one == one != other
    assert len({one, one, other, Causal() & one, Causal() & one}) == 3
    bounds = torch.zeros(3, dtype=torch.int64)
    assert KeyRanges(bounds, bounds) != KeyRanges(bounds, bounds)
    assert str(one) == "BlockMask(blocks=<2x3x4x5>, block=2)"
    assert str(KeyRanges(bounds, bounds)) == "KeyRanges(first=<3>, stop=<3>)"


INTS = torch.zeros(1, 1, 6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: BlockMask(BLOCKS.int(), 2), r"blocks='torch.int32 \(2, 3, 4, 5\) on cpu': it must be a bool tensor"),
        (lambda: BlockMask(BLOCKS[0, 0, 0], 2), r"blocks='torch.bool \(5,\)"),
        (lambda: BlockMask(BLOCKS[None], 2), "blocks='torch.bool"),
        (lambda: BlockMask(BLOCKS[:, :0], 2), "blocks='torch.bool"),
        (lambda: BlockMask([[True]], 2), r"blocks=\[\[True\]\]"),  # type: ignore[arg-type]
        (lambda: BlockMask(BLOCKS, 0), "block=0: it must be a positive integer"),
        (lambda: BlockMask(BLOCKS, 2.0), r"block=2\.0"),  # type: ignore[arg-type]
        (lambda: BlockMask(BLOCKS, 2).mask(9, 9, 0), r"=\(4, 5\): it must be at least \(5, 5\) with block=2"),
        (lambda: BlockMask(BLOCKS, 2).area(8, 11, 0), r"=\(4, 5\): it must be at least \(4, 6\) with block=2"),
        (lambda: (Causal() & BlockMask(BLOCKS, 2)).mask(1, 9), r"\(5, 5\) with block=2, for queries up to 9"),
        (lambda: KeyRanges(INTS.float(), INTS), "first='torch.float32"),
        (lambda: KeyRanges(INTS, INTS.bool()), "stop='torch.bool"),
        (lambda: KeyRanges(INTS[0], INTS[0]), r"first='torch.int64 \(1, 6\)"),
        (lambda: KeyRanges(INTS, INTS[..., :5]), r"stop=.*as first, torch.int64 \(1, 1, 6\)"),
        (lambda: KeyRanges(INTS, INTS.to("meta")), "stop=.*on meta"),
        (lambda: KeyRanges(3, 4), "first=3: it must be an integer tensor"),  # type: ignore[arg-type]
        (lambda: KeyRanges(INTS, INTS).mask(2, 9, 5), "for 6 queries': it must be for at least 7"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], Pattern], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()
