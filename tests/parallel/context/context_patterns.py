"""One of every kind of pattern, over sequences of ``LENGTH`` tokens, ``BATCH`` rows and ``HEADS`` heads."""

from __future__ import annotations

import torch

from toolkit.attention import (
    BlockMask,
    Causal,
    Chunked,
    DilatedWindow,
    Documents,
    Fixed,
    Full,
    GlobalTokens,
    KeyRanges,
    Pattern,
    PerDocument,
    PerHead,
    PrefixLM,
    RandomBlocks,
    Sinks,
    SlidingWindow,
    Strided,
    Window,
)

LENGTH, BATCH, HEADS = 32, 2, 4


def packed() -> torch.Tensor:
    """Documents that end within parts and at their borders, and padding: (BATCH, LENGTH)."""
    lengths = [[3, 13, 9, 7], [8, 8, 12]]
    return Documents.from_lengths(lengths).ids


def by_position() -> dict[str, Pattern]:
    """Those that any part of a sequence can evaluate."""
    generator = torch.Generator().manual_seed(7)
    marks = torch.rand(BATCH, LENGTH, generator=generator) < 0.1
    blocks = torch.rand(BATCH, HEADS, 7, 7, generator=generator) < 0.4
    first = torch.randint(0, LENGTH, (1, 1, LENGTH, 2), generator=generator)
    ids, scattered = packed(), torch.randint(-1, 4, (BATCH, LENGTH), generator=generator)
    causal = Causal()
    return {
        "full": Full(),
        "causal": causal,
        "window": Window(5, 3),
        "sliding": causal & SlidingWindow(6),
        "streaming": causal & (SlidingWindow(5) | Sinks(2)),
        "dilated": causal & DilatedWindow(3, 4),
        "strided": causal & Strided(5),
        "fixed": causal & Fixed(6, 2),
        "chunked": causal & Chunked(7),
        "prefix": PrefixLM(9),
        "leading": causal & (GlobalTokens(2) | SlidingWindow(4)),
        "listed": GlobalTokens(positions=[3, 17, 30]) | SlidingWindow(3),
        "marked": causal & GlobalTokens(mask=marks) | SlidingWindow(2),
        "packed": causal & Documents(ids),
        "scattered": Documents(scattered),
        "restarting": PerDocument(ids, causal & (SlidingWindow(3) | Sinks(1))),
        "restarting_listed": PerDocument(ids, GlobalTokens(positions=[2, 6]) | SlidingWindow(2)),
        "per_head": PerHead([causal, Full(), causal & DilatedWindow(2, 5), SlidingWindow(3)]),
        "blocks": BlockMask(blocks, 5),
        "ranges": KeyRanges(first, first + 5),
        "random": causal & (RandomBlocks(2, 4, seed=1, causal=True) | SlidingWindow(2)),
        "random_per_head": RandomBlocks(2, 4, seed=2, causal=True, per_head=HEADS),
        "negated": causal & ~Chunked(3),
    }


def everything() -> dict[str, Pattern]:
    """Those, and what only whole sequences can evaluate."""
    return {**by_position(), "random_both_ways": RandomBlocks(2, 4, seed=3)}
