"""Every pattern with its definition in plain Python, pair by pair, and what plans and schedules hold as masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from toolkit.attention import intervals, patterns
from toolkit.attention.intervals import Intervals
from toolkit.attention.patterns import Pattern
from toolkit.attention.plan import Pass
from toolkit.attention.schedule import Runs

BATCH, HEADS, LENGTH = 2, 2, 40
"""Batch rows and heads of patterns that differ by them, and tokens that their tensors reach to."""

Sees = Callable[[int, int, int, int, int], bool]
"""Batch row, head, query, key, one past the last key -> visible."""


@dataclass(frozen=True)
class Case:
    """A pattern, and the same in plain Python."""

    pattern: Pattern
    sees: Sees

    def __repr__(self) -> str:
        return repr(self.pattern)


def _by_place(holds: Callable[[int, int], bool]) -> Sees:
    return lambda b, h, i, j, end: holds(i, j)


def window(left: int, right: int) -> Case:
    return Case(
        patterns.Window(left, right),
        _by_place(lambda i, j: (left < 0 or j >= i - left) and (right < 0 or j <= i + right)),
    )


def sliding(width: int) -> Case:
    return Case(patterns.SlidingWindow(width), _by_place(lambda i, j: abs(i - j) < width))


def dilated(width: int, step: int) -> Case:
    return Case(
        patterns.DilatedWindow(width, step),
        _by_place(lambda i, j: abs(i - j) < width * step and (i - j) % step == 0),
    )


def chunked(size: int) -> Case:
    return Case(patterns.Chunked(size), _by_place(lambda i, j: i // size == j // size))


def prefix(length: int) -> Case:
    return Case(patterns.PrefixLM(length), _by_place(lambda i, j: j < length or j <= i))


def sinks(count: int) -> Case:
    return Case(patterns.Sinks(count), _by_place(lambda i, j: j < count))


def strided(stride: int) -> Case:
    return Case(patterns.Strided(stride), _by_place(lambda i, j: abs(i - j) < stride or (i - j) % stride == 0))


def fixed(block: int, summary: int) -> Case:
    summary = min(block, summary)
    return Case(
        patterns.Fixed(block, summary),
        _by_place(lambda i, j: i // block == j // block or j % block >= block - summary),
    )


def leading(count: int) -> Case:
    return Case(patterns.GlobalTokens(count), _by_place(lambda i, j: i < count or j < count))


def listed(positions: list[int]) -> Case:
    return Case(patterns.GlobalTokens(positions=positions), _by_place(lambda i, j: i in positions or j in positions))


def marked(seed: int) -> Case:
    mask = torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(seed)) < 0.15
    rows = mask.tolist()
    return Case(patterns.GlobalTokens(mask=mask), lambda b, h, i, j, end: rows[b][i] or rows[b][j])


def philox(seed: int, counters: list[int]) -> list[int]:
    """Philox4x32-10 in Python's integers (Salmon et al. 2011)."""
    key, word = [seed % 2**32, seed >> 32], 2**32 - 1
    c0, c1, c2, c3 = counters
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ key[0], b & word, (a >> 32) ^ c3 ^ key[1], a & word
        key = [(key[0] + 0x9E3779B9) & word, (key[1] + 0xBB67AE85) & word]
    return [c0, c1, c2, c3]


def drawn_blocks(row: int, candidates: int, count: int, seed: int, head: int) -> list[int]:
    """Draw by draw from the list of those left."""
    left, drawn = list(range(candidates)), []
    for draw in range(min(count, candidates)):
        word = philox(seed, [draw // 4, row, head, 0])[draw % 4]
        drawn.append(left.pop(word * len(left) >> 32))
    return drawn


def random_blocks(count: int, block: int, seed: int, causal: bool, per_head: bool) -> Case:
    pattern = patterns.RandomBlocks(count, block, seed, causal, HEADS if per_head else False)

    def sees(b: int, h: int, i: int, j: int, end: int) -> bool:
        candidates = i // block if causal else -(-end // block)
        return j // block in drawn_blocks(i // block, candidates, count, seed, h if per_head else 0)

    return Case(pattern, sees)


def block_mask(block: int, lead: tuple[int, ...], seed: int) -> Case:
    side = -(-LENGTH // block)
    blocks = torch.rand(*lead, side, side, generator=torch.Generator().manual_seed(seed)) < 0.4
    table = blocks.expand(BATCH, HEADS, side, side).tolist()
    return Case(patterns.BlockMask(blocks, block), lambda b, h, i, j, end: table[b][h][i // block][j // block])


def key_ranges(lead: tuple[int, ...], runs: int | None, seed: int) -> Case:
    generator = torch.Generator().manual_seed(seed)
    shape = (*lead, LENGTH) if runs is None else (*(lead or (1, 1)), LENGTH, runs)
    first = torch.randint(-3, LENGTH, shape, generator=generator)
    stop = first + torch.randint(-2, 9, shape, generator=generator)
    full = (BATCH, HEADS, LENGTH, runs or 1)
    low, high = (x.reshape(*x.shape[: 3 if lead or runs else 1], -1).expand(full).tolist() for x in (first, stop))

    def sees(b: int, h: int, i: int, j: int, end: int) -> bool:
        return any(x <= j < y for x, y in zip(low[b][h][i], high[b][h][i], strict=True))

    return Case(patterns.KeyRanges(first, stop.int()), sees)


def documents(batch: int | None, seed: int) -> Case:
    ids = torch.randint(-1, 4, (batch or 1, LENGTH), generator=torch.Generator().manual_seed(seed))
    rows = ids.expand(BATCH, LENGTH).tolist()
    pattern = patterns.Documents(ids if batch else ids[0])
    return Case(pattern, lambda b, h, i, j, end: rows[b][i] == rows[b][j] != -1)


def packed_ids(batch: int, seed: int) -> Tensor:
    """Documents side by side, some padding between and after: (batch, LENGTH)."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for _ in range(batch):
        ids: list[int] = []
        while len(ids) < LENGTH:
            name, length = (int(torch.randint(*span, (), generator=generator)) for span in ((0, 4), (1, 15)))
            ids += [-1 if name == 0 else len(ids)] * length
        rows.append(ids[:LENGTH])
    return torch.tensor(rows)


def per_document(batch: int | None, seed: int, inner: Case) -> Case:
    ids = packed_ids(batch or 1, seed)
    rows = ids.expand(BATCH, LENGTH).tolist()

    def sees(b: int, h: int, i: int, j: int, end: int) -> bool:
        own = rows[b][i]
        if own == -1 or rows[b][j] != own:
            return False
        start, length = rows[b].index(own), rows[b][:end].count(own)
        return inner.sees(b, h, i - start, j - start, length)

    return Case(patterns.PerDocument(ids if batch else ids[0], inner.pattern), sees)


def per_head(cases: list[Case]) -> Case:
    return Case(
        patterns.PerHead([case.pattern for case in cases]), lambda b, h, i, j, end: cases[h].sees(b, h, i, j, end)
    )


def both(x: Case, y: Case) -> Case:
    return Case(x.pattern & y.pattern, lambda *where: x.sees(*where) and y.sees(*where))


def either(x: Case, y: Case) -> Case:
    return Case(x.pattern | y.pattern, lambda *where: x.sees(*where) or y.sees(*where))


def neither(x: Case) -> Case:
    return Case(~x.pattern, lambda *where: not x.sees(*where))


def _joined(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    return st.one_of(st.builds(both, inner, inner), st.builds(either, inner, inner), st.builds(neither, inner))


size, seeds = st.integers(1, 9), st.integers(0, 999)
leads = st.sampled_from([(), (HEADS,), (1, 1), (BATCH, 1), (1, HEADS), (BATCH, HEADS)])
STATIC_LEAVES: st.SearchStrategy[Case] = st.one_of(
    st.just(Case(patterns.Full(), _by_place(lambda i, j: True))),
    st.just(Case(patterns.Causal(), _by_place(lambda i, j: j <= i))),
    st.builds(window, st.integers(-1, 9), st.integers(-1, 9)),
    st.builds(sliding, size),
    st.builds(dilated, st.integers(1, 5), st.integers(1, 5)),
    st.builds(chunked, size),
    st.builds(prefix, st.integers(0, 9)),
    st.builds(sinks, size),
    st.builds(strided, size),
    st.builds(fixed, size, size),
    st.builds(leading, st.integers(1, 5)),
    st.builds(listed, st.lists(st.integers(0, 12), min_size=1, max_size=4)),
    st.builds(random_blocks, st.integers(1, 6), st.integers(1, 9), seeds, st.booleans(), st.just(False)),
)
TENSOR_LEAVES: st.SearchStrategy[Case] = st.one_of(
    st.builds(marked, seeds),
    st.builds(block_mask, st.integers(1, 9), leads, seeds),
    st.builds(key_ranges, st.sampled_from([(), (1, 1), (BATCH, 1), (1, HEADS)]), st.sampled_from([None, 3]), seeds),
    st.builds(documents, st.sampled_from([None, 1, BATCH]), seeds),
    st.builds(random_blocks, st.integers(1, 6), st.integers(1, 9), seeds, st.booleans(), st.just(True)),
)
STATIC = st.recursive(STATIC_LEAVES, _joined, max_leaves=4)
SIMPLE = st.recursive(STATIC_LEAVES | TENSOR_LEAVES, _joined, max_leaves=3)
LEAVES: st.SearchStrategy[Case] = st.one_of(
    STATIC_LEAVES,
    TENSOR_LEAVES,
    st.builds(per_document, st.sampled_from([None, 1, BATCH]), seeds, SIMPLE),
    st.builds(per_head, st.lists(SIMPLE, min_size=HEADS, max_size=HEADS)),
)
CASES = st.recursive(LEAVES, _joined, max_leaves=4)
"""Random compositions of all patterns."""


@dataclass(frozen=True)
class Place:
    """Where queries and keys stand; ``q_start`` None: the last positions of the keys'."""

    q_len: int
    kv_len: int
    q_start: int | None
    kv_start: int

    @property
    def args(self) -> tuple[int, int, int | None, int]:
        return self.q_len, self.kv_len, self.q_start, self.kv_start

    @property
    def end(self) -> int:
        return self.kv_start + self.kv_len

    @property
    def first(self) -> int:
        return self.end - self.q_len if self.q_start is None else self.q_start

    def fits(self, pattern: Pattern) -> None:
        """Have hypothesis draw another example where the pattern says nothing of this place."""
        assume(self.first >= 0)
        try:
            pattern.check(self.first + self.q_len, self.end)
        except ValueError:
            assume(False)


PLACES = st.builds(
    Place,
    st.integers(1, 27),
    st.integers(1, 30),
    st.sampled_from([None, None, 0, 3, 12]),
    st.sampled_from([0, 0, 0, 5, 10]),
)


def brute_force(case: Case, place: Place) -> Tensor:
    """bool (BATCH, HEADS, q_len, kv_len): the definition, pair by pair."""
    rows = range(place.first, place.first + place.q_len)
    columns = range(place.kv_start, place.end)
    seen = [
        [[[case.sees(b, h, i, j, place.end) for j in columns] for i in rows] for h in range(HEADS)]
        for b in range(BATCH)
    ]
    return torch.tensor(seen)


def held(runs: Intervals | Runs | Pass, columns: int) -> Tensor:
    """Runs (..., rows, slots) as a mask (..., rows, columns)."""
    place = torch.arange(columns)
    return ((place >= runs.first[..., None]) & (place < runs.stop[..., None])).any(dim=-2)


class NoWaiting(TorchDispatchMode):
    """Refuses operations whose result's size or value the host would have to wait for."""

    REFUSED = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "equal", "bincount", "repeat_interleave")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if any(name.startswith(refused) for refused in self.REFUSED):
            raise AssertionError(f"{name} would wait for the device")
        return func(*args, **(kwargs or {}))


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of any tensor that an operation gives."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            self.numel = max(self.numel, x.numel() if isinstance(x, Tensor) else 0)
        return out


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """The CPU treated as a device that must not be waited for."""
    with mock.patch.object(intervals, "HOST", ()), NoWaiting():
        yield
