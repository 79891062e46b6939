"""Sinks and global tokens: those of StreamingLLM, Longformer and BigBird."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.attention.patterns import Causal, Chunked, Full, GlobalTokens, Pattern, Sinks, SlidingWindow, Window
from toolkit.attention.patterns.tokens import KeysAt, LeadingQueries, QueriesAt

half: Any = 2.5
MASK = torch.tensor([[True, False, False, True, False, False], [False, False, False, False, False, True]])


def test_sinks_see_nothing_more_but_are_seen_by_all() -> None:
    assert Sinks(2).mask(4, 5).tolist() == [[True, True, False, False, False]] * 4
    assert Sinks(9).mask(4, 5).all()
    assert Sinks(2).mask(3, 4, 5, 1).tolist() == [[True, False, False, False]] * 3


def test_the_three_ways_to_name_global_tokens_agree() -> None:
    n = 8
    counted = GlobalTokens(3).mask(n, n)
    assert torch.equal(GlobalTokens(positions=[2, 0, 1, 1]).mask(n, n), counted)
    marks = torch.arange(n)[None] < 3
    assert torch.equal(GlobalTokens(mask=marks).mask(n, n), counted[None, None])
    assert torch.equal(counted, counted.T), "global tokens are symmetric"


def test_a_mask_differs_by_batch_row() -> None:
    pattern = GlobalTokens(mask=MASK)
    assert pattern.planes == (2, 1)
    seen = pattern.mask(6, 6)
    assert seen.shape == (2, 1, 6, 6)
    for row in range(2):
        places = MASK[row].nonzero().flatten().tolist()
        assert torch.equal(seen[row, 0], GlobalTokens(positions=places).mask(6, 6))


@pytest.mark.parametrize("form", ["count", "positions", "mask"])
def test_the_definition_by_keys_and_queries_is_the_same(form: str) -> None:
    given: dict[str, Any] = {"count": 2, "positions": [1, 4], "mask": MASK}
    pattern = GlobalTokens(**{form: given[form]})
    for where in ((6, 6), (3, 6), (2, 4, 2, 1), (4, 3, 1, 3)):
        assert torch.equal(pattern.definition.mask(*where), pattern.mask(*where))
        keys, queries = pattern.definition.parts
        assert isinstance(keys, (KeysAt, Sinks)) and isinstance(queries, (QueriesAt, LeadingQueries))


def test_longformers_mask_is_a_window_or_a_global_token_on_either_side() -> None:
    # Hugging Face's Longformer sees abs(i - j) <= attention_window / 2; global tokens see all and are seen by all.
    n, attention_window, places = 24, 6, [0, 9]
    pattern = SlidingWindow(attention_window // 2 + 1) | GlobalTokens(positions=places)
    i, j = np.indices((n, n))
    theirs = (abs(i - j) <= attention_window // 2) | np.isin(i, places) | np.isin(j, places)
    assert np.array_equal(pattern.mask(n, n).numpy(), theirs)


def test_bigbirds_blocks_are_a_window_of_three_and_the_first_and_last_as_globals() -> None:
    # BigBird's rows, but for the random blocks: r sees r - 1, r, r + 1, the first and the last; those two see all.
    blocks, block = 6, 4
    n = blocks * block
    ends = [*range(block), *range(n - block, n)]
    theirs = torch.zeros(blocks, blocks, dtype=torch.bool)
    for r in range(blocks):
        theirs[r, [c for c in (r - 1, r, r + 1, 0, blocks - 1) if 0 <= c < blocks]] = True
    theirs[0] = theirs[-1] = True
    theirs = theirs.repeat_interleave(block, 0).repeat_interleave(block, 1)
    neighbours = torch.tensor([[abs(i // block - j // block) <= 1 for j in range(n)] for i in range(n)])
    assert torch.equal(GlobalTokens(positions=ends).mask(n, n) | neighbours, theirs)


@pytest.mark.parametrize("radius", [1, 4])
def test_attention_gyms_global_window(radius: int) -> None:
    gym = pytest.importorskip("attn_gym.masks")
    from torch.nn.attention.flex_attention import create_mask

    is_global = torch.zeros(16, dtype=torch.bool)
    is_global[[2, 11]] = True
    theirs = create_mask(gym.generate_global_sliding_window(radius, is_global), None, None, 16, 16, device="cpu")[0, 0]
    ours = Window(radius, radius) | GlobalTokens(positions=[2, 11])
    assert torch.equal(ours.mask(16, 16), theirs)


def test_until_leaves_out_the_positions_that_do_not_exist_yet() -> None:
    pattern = Causal() & GlobalTokens(positions=[1, 5])
    with pytest.raises(ValueError, match="positions=5: it must be below the number of tokens, 4"):
        pattern.area(4, 4)
    assert torch.equal(pattern.until(4).mask(4, 4), pattern.mask(6, 6)[:4, :4])
    assert pattern.until(6) == pattern
    assert not (GlobalTokens(positions=[5])).until(4).mask(4, 4).any()
    assert torch.equal((~GlobalTokens(positions=[5])).until(4).mask(4, 4), Full().mask(4, 4))


def test_those_without_a_mask_are_alike_when_written_alike() -> None:
    assert GlobalTokens(positions=[3, 1]) == GlobalTokens(positions=(1, 3, 3))
    assert hash(GlobalTokens(positions=[3, 1])) == hash(GlobalTokens(positions=[1, 3]))
    assert GlobalTokens(2) == GlobalTokens(count=2) != GlobalTokens(positions=[0, 1])
    one = GlobalTokens(mask=MASK)
    assert one == one != GlobalTokens(mask=MASK)
    assert len({one, one, GlobalTokens(mask=MASK)}) == 2


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (Sinks(4), "Sinks(count=4)"),
        (GlobalTokens(4), "GlobalTokens(count=4)"),
        (GlobalTokens(positions=[9, 2]), "GlobalTokens(positions=[2, 9])"),
        (GlobalTokens(mask=MASK), "GlobalTokens(mask=<2x6>)"),
        (~GlobalTokens(mask=MASK) & Chunked(2), "~GlobalTokens(mask=<2x6>) & Chunked(size=2)"),
    ],
)
def test_they_print_as_they_are_written(pattern: Pattern, text: str) -> None:
    assert str(pattern) == text


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Sinks(0), "count=0: it must be a positive integer"),
        (lambda: Sinks(half), r"count=2\.5"),
        (GlobalTokens, "exactly one of count, positions and mask"),
        (lambda: GlobalTokens(2, [3]), "exactly one of count, positions and mask"),
        (lambda: GlobalTokens(0), "count=0: it must be a positive integer"),
        (lambda: GlobalTokens(positions=[]), "positions"),
        (lambda: GlobalTokens(positions=[-1]), "integers of 0 or more"),
        (lambda: GlobalTokens(positions=[half]), "integers of 0 or more"),
        (lambda: GlobalTokens(positions=[2**31]), "integers of 0 or more"),
        (lambda: GlobalTokens(positions=3), "positions=3"),  # type: ignore[arg-type]
        (lambda: GlobalTokens(mask=torch.zeros(4, dtype=torch.bool)), r"a bool tensor \(batch, length\)"),
        (lambda: GlobalTokens(mask=torch.zeros(2, 4)), r"torch.float32 \(2, 4\)"),
        (lambda: GlobalTokens(mask=[[True]]), r"mask=\[\[True\]\]"),  # type: ignore[arg-type]
        (lambda: GlobalTokens(mask=MASK).area(7, 7), "mask length=6: it must be at least 7"),
        (lambda: GlobalTokens(mask=MASK).mask(2, 2, 5), "mask length=6: it must be at least 7"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], Pattern], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()
