"""How many tiles attention visits for each pattern, and how much of what it visits is visible.

    python experiments/benchmarks/tile_efficiency.py --length 8192 --block-m 128 --block-n 64

density: visible pairs / all pairs. visited: tiles visited / all tiles, beside the most it may be (stated for
8192 tokens and tiles of 128 x 64 only). efficiency: visible pairs / pairs in visited tiles. full: visited tiles
that need no mask. mask only: tiles visited by a design that keeps the order of the tokens and visits every tile
with a visible pair in it. All of these are counts: they are the same on every machine. The last line is the time
and memory of the schedule of a long sequence.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterable

import torch
from torch import Tensor

from toolkit.attention import (
    BlockMask,
    Causal,
    Documents,
    GlobalTokens,
    Pattern,
    PerDocument,
    SlidingWindow,
    parse_pattern,
)
from toolkit.attention.plan import Pass, plan
from toolkit.attention.schedule import Schedule, schedule

STATED = (8192, 128, 64)
"""Length and tile at which limits are stated."""

LONG = "Causal() & (SlidingWindow(4096) | Sinks(4))"


def patterns(length: int) -> dict[str, tuple[Pattern, float | None]]:
    """Name -> pattern and the most of all tiles it may visit, in percent."""
    generator = torch.Generator().manual_seed(0)
    scattered = f"GlobalTokens(positions={sorted(torch.randperm(length, generator=generator)[:32].tolist())})"
    written: dict[str, tuple[str, float | None]] = {
        "full": ("Full()", None),
        "causal": ("Causal()", None),
        "window 512": ("Causal() & SlidingWindow(512)", 7.6),
        "window 512 + 4 sinks": ("Causal() & (SlidingWindow(512) | Sinks(4))", 8.4),
        "dilated window, 512 keys 4 apart": ("Causal() & DilatedWindow(512, 4)", 8.0),
        "window 512 + 32 scattered globals": (f"Causal() & (SlidingWindow(512) | {scattered})", 10.5),
        "window 512 + 32 leading globals": ("Causal() & (SlidingWindow(512) | GlobalTokens(32))", None),
        "strided 128": ("Causal() & Strided(128)", 6.0),
        "fixed 128, 8 summaries": ("Causal() & Fixed(128, 8)", None),
        "chunked 512": ("Causal() & Chunked(512)", None),
        "prefix 512": ("PrefixLM(512)", None),
        "window 256+256 + 32 scattered globals": (f"SlidingWindow(257) | {scattered}", None),
        "BigBird: window, globals, 3 random blocks": (
            f"SlidingWindow(129) | {scattered} | RandomBlocks(3, 64, 0)",
            None,
        ),
        "causal, 8 random blocks of 64": ("Causal() & (SlidingWindow(64) | RandomBlocks(8, 64, 0, causal=True))", None),
        "all but a window": ("Causal() & ~SlidingWindow(512)", None),
    }
    made = {name: (parse_pattern(text), limit) for name, (text, limit) in written.items()}
    side = -(-length // 64)
    packed = Documents.from_lengths([_lengths(length, generator)])
    marked = GlobalTokens(mask=torch.rand(1, length, generator=generator) < 32 / length)
    return {
        **made,
        "block mask, 1 in 8 blocks of 64": (
            BlockMask(torch.rand(side, side, generator=generator) < 1 / 8, 64),
            None,
        ),
        "packed documents": (Causal() & packed, None),
        "packed, window 512 + 4 sinks of each": (
            PerDocument(packed, parse_pattern("Causal() & (SlidingWindow(512) | Sinks(4))")),
            None,
        ),
        "window 512 + globals of a mask": (Causal() & (SlidingWindow(512) | marked), None),
    }


def _lengths(length: int, generator: torch.Generator) -> list[int]:
    """Lengths of documents, 1024 on average, that fill the row."""
    cuts = torch.randperm(length - 1, generator=generator)[: max(0, length // 1024 - 1)].sort().values + 1
    edges = [0, *cuts.tolist(), length]
    return [stop - first for first, stop in itertools.pairwise(edges)]


def visited_by_mask(pattern: Pattern, length: int, block_m: int, block_n: int) -> int:
    """Tiles of the plain order with a visible pair, counted pair by pair."""
    total, rest = 0, -length % block_n
    for start in range(0, length, block_m):
        seen = pattern.mask(min(block_m, length - start), length, start).any(dim=-2).reshape(-1)
        total += int(torch.nn.functional.pad(seen, (0, rest)).view(-1, block_n).any(dim=-1).sum())
    return total


def row(name: str, pattern: Pattern, limit: float | None, length: int, block_m: int, block_n: int) -> str:
    """One line of the table."""
    passes = plan(pattern, length, length)
    made = [schedule(part, block_m, block_n) for part in passes]
    visited, full = sum(one.visited() for one in made), sum(one.full.tiles() for one in made)
    tiles = -(-length // block_m) * -(-length // block_n)
    area = pattern.area(length, length)
    stated = f"{limit:.1f}" if limit is not None and (length, block_m, block_n) == STATED else "-"
    by_mask = visited_by_mask(pattern, length, block_m, block_n)
    efficiency = area / (visited * block_m * block_n)
    return (
        f"{name:<42}{100 * area / length**2:>9.2f}{100 * visited / tiles:>9.2f}{stated:>7}{efficiency:>12.3f}"
        f"{full / visited:>7.2f}{len(passes):>8}{100 * by_mask / tiles:>11.2f}"
    )


def kept(passes: Iterable[Pass], made: Iterable[Schedule]) -> list[Tensor]:
    """Every tensor that stays for as long as the schedule is used."""
    runs = [run for one in made for run in (one.full, one.partial, one.full_transposed, one.partial_transposed)]
    return [x for part in passes for x in (part.first, part.stop)] + [
        x for run in runs for x in (run.first, run.stop, run.count)
    ]


def main() -> None:
    """Parse, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=STATED[0])
    parser.add_argument("--block-m", type=int, default=STATED[1])
    parser.add_argument("--block-n", type=int, default=STATED[2])
    parser.add_argument("--long", type=int, default=2**20, help="tokens of the long schedule; 0 leaves it out")
    options = parser.parse_args()
    where = options.length, options.block_m, options.block_n
    print(f"{where[0]} tokens, tiles of {where[1]} x {where[2]}; density, visited, most and mask only in percent")
    names = ("density", "visited", "most", "efficiency", "full", "passes", "mask only")
    print(f"{'pattern':<42}" + "".join(f"{n:>{w}}" for n, w in zip(names, (9, 9, 7, 12, 7, 8, 11), strict=True)))
    for name, (pattern, limit) in patterns(options.length).items():
        print(row(name, pattern, limit, *where))
    if options.long:
        start = time.perf_counter()
        passes = plan(parse_pattern(LONG), options.long, options.long)
        made = [schedule(part, options.block_m, options.block_n) for part in passes]
        size = sum(x.numel() * x.element_size() for x in kept(passes, made))
        seconds = time.perf_counter() - start
        print(f"{LONG} at {options.long} tokens: {seconds:.2f} s, {size / 2**20:.1f} MB kept")


if __name__ == "__main__":
    main()
