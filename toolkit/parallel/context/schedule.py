"""Who needs whose keys: the visible pairs of every two chunks, counted from the pattern."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from toolkit.attention import Pattern, PerHead, RandomBlocks
from toolkit.checks import require
from toolkit.parallel.context.layout import Chunk, Layout

SCHEDULES = 16
"""Schedules kept for reuse; those of patterns with tensors keep the tensors alive."""


@dataclass(frozen=True)
class Block:
    """Queries of one chunk that meet the keys of another; at least one pair of theirs is visible.

    Attributes:
        pattern: as it is where only the tokens up to the last of both exist.
        queries, keys: places in the list of chunks that their holder holds.
        query, key: where the chunks lie.
    """

    pattern: Pattern
    queries: int
    keys: int
    query: Chunk
    key: Chunk


@dataclass(frozen=True)
class Step:
    """Step s of a rank: it gives keys and values to the rank s places on, and gets those of the rank s places back.

    Step 0 is its own. Whoever gets keys sends their gradients back in the same step of the backward pass.

    Attributes:
        target, source: ranks.
        sent: the chunks of its own, by place in its list, that ``target`` sees anything of.
        received: the chunks of ``source`` that it sees anything of itself.
        blocks: what it computes with them.
    """

    target: int
    source: int
    sent: tuple[int, ...]
    received: tuple[int, ...]
    blocks: tuple[Block, ...]


@lru_cache(maxsize=SCHEDULES)
def schedule(pattern: Pattern, layout: Layout, rank: int) -> tuple[Step, ...]:
    """The steps of ``rank``, one for each rank of the layout.

    Costs the plans of 2 * chunks_per_rank^2 * ranks blocks, about those of two or four rows of the whole sequence's
    plan over ranks; kept for the next call. A pattern with tensors on a GPU waits for the device.

    Raises:
        ValueError: if the pattern does not fit the sequence, or no part of it can tell what it sees.
    """
    require_by_position(pattern)
    pattern.check(layout.length, layout.length)
    n = layout.ranks
    steps = []
    for step in range(n):
        target, source = (rank + step) % n, (rank - step) % n
        blocks = tuple(_blocks(pattern, layout, rank, source))
        given = blocks if step == 0 else _blocks(pattern, layout, target, rank)
        steps.append(Step(target, source, _keys(given), _keys(blocks), blocks))
    return tuple(steps)


def visible_pairs(pattern: Pattern, layout: Layout, batch: int = 1, heads: int = 1) -> tuple[int, ...]:
    """The pairs that each rank computes, over all batch rows and heads: the balance of a layout.

    >>> from toolkit.attention import Causal
    >>> visible_pairs(Causal(), Layout("zigzag", 2, 8)), visible_pairs(Causal(), Layout("contiguous", 2, 8))
    ((18, 18), (10, 26))
    """
    return tuple(
        sum(_area(block, batch, heads) for step in schedule(pattern, layout, rank) for block in step.blocks)
        for rank in range(layout.ranks)
    )


def require_by_position(pattern: Pattern) -> None:
    """Refuse a pattern that part of a sequence cannot evaluate.

    Raises:
        ValueError: naming it.
    """
    for leaf in _leaves(pattern):
        able = not isinstance(leaf, RandomBlocks) or leaf.causal
        right = (
            "RandomBlocks(..., causal=True) over parts of a sequence: else the blocks drawn depend on the number of "
            "keys; context_method='ulysses' takes it as it is"
        )
        require(able, "pattern", leaf, right)


def _leaves(pattern: Pattern) -> Iterator[Pattern]:
    for leaf, _ in pattern.leaves():
        yield leaf
        for part in leaf.patterns if isinstance(leaf, PerHead) else ():
            yield from _leaves(part)


def _blocks(pattern: Pattern, layout: Layout, rank: int, source: int) -> Iterator[Block]:
    """What the queries of ``rank`` see of the keys of ``source``, keys' chunk after keys' chunk."""
    for keys, key in enumerate(layout.chunks(source)):
        for queries, query in enumerate(layout.chunks(rank)):
            known = pattern.until(max(query.stop, key.stop))
            block = Block(known, queries, keys, query, key)
            if _area(block, *pattern.planes):
                yield block


def _area(block: Block, batch: int, heads: int) -> int:
    (q_start, q_stop), (start, stop) = block.query, block.key
    return block.pattern.area(q_stop - q_start, stop - start, q_start, start, batch, heads)


def _keys(blocks: tuple[Block, ...] | Iterator[Block]) -> tuple[int, ...]:
    return tuple(sorted({block.keys for block in blocks}))
