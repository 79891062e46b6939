"""A pattern for each head."""

from __future__ import annotations

import pytest
import torch

from toolkit.attention.patterns import (
    BlockMask,
    Causal,
    DilatedWindow,
    GlobalTokens,
    PerHead,
    SlidingWindow,
    Strided,
)

GROWING = PerHead([DilatedWindow(3, 1), DilatedWindow(3, 2), DilatedWindow(3, 4)])


def test_each_head_sees_what_its_own_pattern_sees() -> None:
    pattern = Causal() & GROWING
    assert pattern.planes == (1, 3)
    seen = pattern.mask(9, 14)
    assert seen.shape == (1, 3, 9, 14)
    for head, dilation in enumerate((1, 2, 4)):
        own = Causal() & DilatedWindow(3, dilation)
        assert torch.equal(seen[0, head], own.mask(9, 14))
        assert pattern.for_head(head) == own
    assert pattern.area(9, 14) == int(seen.sum())
    assert pattern.area(9, 14, batch=5, heads=3) == 5 * int(seen.sum())


def test_one_pattern_for_all_heads_is_that_pattern() -> None:
    alike = PerHead([Strided(3)] * 4)
    assert alike.area(10, 10) == Strided(3).area(10, 10, heads=4)


def test_parts_that_differ_by_head_are_read_at_their_head() -> None:
    blocks = torch.rand(2, 2, 3, 3) < 0.5
    mask = BlockMask(blocks, 4)
    pattern = PerHead([mask, Causal()])
    assert pattern.planes == (2, 2)
    seen = pattern.mask(12, 12)
    assert torch.equal(seen[:, 0], mask.mask(12, 12)[:, 0])
    assert torch.equal(seen[:, 1], Causal().mask(12, 12).expand(2, 12, 12))
    assert pattern.area(12, 12) == int(seen.sum())


def test_they_are_alike_when_written_alike() -> None:
    assert PerHead([Causal(), Strided(2)]) == PerHead((Causal(), Strided(2))) != PerHead([Strided(2), Causal()])
    assert str(Causal() & PerHead([Causal(), ~Strided(2)])) == "Causal() & PerHead([Causal(), ~Strided(stride=2)])"


def test_until_and_check_go_to_every_head() -> None:
    pattern = PerHead([Causal(), GlobalTokens(positions=[1, 7])])
    with pytest.raises(ValueError, match="positions=7"):
        pattern.mask(4, 4)
    assert torch.equal(pattern.until(4).mask(4, 4), PerHead([Causal(), GlobalTokens(positions=[1])]).mask(4, 4))


def test_bad_settings_are_named() -> None:
    for bad in ([], [Causal(), 3], [Causal]):
        with pytest.raises(ValueError, match=r"patterns=.*patterns, one for each query head"):
            PerHead(bad)  # type: ignore[arg-type]
    three = BlockMask(torch.ones(3, 1, 1, dtype=torch.bool), 4)
    with pytest.raises(ValueError, match="patterns=2: it must be 3"):
        PerHead([three, Causal()])
    with pytest.raises(ValueError, match=r"pattern heads=\[2, 3\]"):
        PerHead([Causal(), SlidingWindow(2)]) & three
