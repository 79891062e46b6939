"""From a pattern to the passes that compute it: which rows meet which columns, in which order.

A pattern whose keys are scattered (a dilated window, a stride, scattered global tokens) touches every tile
of the plain order of tokens and fills none. In another order its keys lie together: sorted by residue class
a dilated window is a window; gathered into a list of their own, global keys are a few dense columns. So the
visible pairs are split into disjoint passes, each in the order that suits it, and one softmax runs over all.

The split is Shannon's expansion. With the scattered parts of a pattern taken for false, what remains is
computed in the plain order; then each part is taken for true where it is true, in its own order, less what
is computed already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from typing import Any

import torch
from torch import Tensor

from toolkit.attention.held import Held
from toolkit.attention.intervals import FAR, ROWS, Intervals, joined, normalise, on_host
from toolkit.attention.patterns.combinations import FULL, NOTHING, simplest
from toolkit.attention.patterns.heads import PerHead
from toolkit.attention.patterns.pattern import Pattern, query_positions
from toolkit.attention.patterns.scattered import Residue, SummaryKeys
from toolkit.attention.patterns.tokens import KeysAt, QueriesAt

PLANS = 64
"""Plans kept for reuse, by pattern and shape; of patterns with tensors, see :mod:`toolkit.attention.held`."""


@dataclass(frozen=True, eq=False)
class Pass:
    """Some of the visible pairs, in an order of rows and columns in which they are dense.

    Place r holds query row ``rows[r]``, place c key column ``columns[c]``; place r sees place c when one of
    its slots has first <= c < stop. Passes of a plan share no pair; for each head the first one that is for
    it holds every row.

    Attributes:
        rows: (batch | 1, heads | 1, n_rows) int32, -1 where a place is empty; None: the rows as they come.
        columns: (batch | 1, 1, n_columns) int32, -1 where a place is empty; None: the columns as they come.
        first, stop: (batch | 1, heads | 1, n_rows, slots) int32; slots ascend, empty ones come last.
        n_columns: places of columns.
        heads: the query heads it is for; None: all.
        complete: whether every query row is in it.
        cache: what backends derive from it and keep.
    """

    rows: Tensor | None
    columns: Tensor | None
    first: Tensor
    stop: Tensor
    n_columns: int
    heads: tuple[int, ...] | None = None
    complete: bool = True
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def n_rows(self) -> int:
        """Places of rows."""
        return self.first.shape[-2]

    @property
    def slots(self) -> int:
        """Runs of columns a place may see."""
        return self.first.shape[-1]

    def on(self, device: torch.device) -> Pass:
        """The same on another device, copied once."""
        if self.first.device == device:
            return self
        if ("on", device) not in self.cache:
            rows, columns = (None if x is None else x.to(device) for x in (self.rows, self.columns))
            first, stop = self.first.to(device), self.stop.to(device)
            kept = {"origin": self}  # schedules are made where the plan was
            self.cache["on", device] = replace(self, rows=rows, columns=columns, first=first, stop=stop, cache=kept)
        moved: Pass = self.cache["on", device]
        return moved


def plan(pattern: Pattern, q_len: int, kv_len: int, q_start: int | None = None, kv_start: int = 0) -> tuple[Pass, ...]:
    """The passes over the pairs that ``pattern`` sees, on its device (the CPU when it holds no tensor).

    Costs O(q_len * slots) time and memory, and is cached per pattern and shape.

    Raises:
        ValueError: as :meth:`Pattern.mask` does.
    """
    where = pattern, q_len, kv_len, q_start, kv_start
    if pattern.device is None:
        return _kept(*where)
    return _held.get(where, lambda: make_plan(*where), _tensors)


def make_plan(
    pattern: Pattern, q_len: int, kv_len: int, q_start: int | None = None, kv_start: int = 0
) -> tuple[Pass, ...]:
    """:func:`plan` made anew."""
    device = pattern.device or torch.device("cpu")
    query = query_positions(pattern, q_len, kv_len, q_start, kv_start, device)
    passes: list[Pass] = []
    for heads, part in _by_head(pattern):
        passes.extend(_Planner(part, query, kv_start, kv_start + kv_len, heads).passes())
    return tuple(passes)


_kept = lru_cache(maxsize=PLANS)(make_plan)
_held: Held[tuple[Pass, ...]] = Held()


def _tensors(passes: tuple[Pass, ...]) -> list[Tensor]:
    """What a plan holds, twice: backends derive about as much from it, and keep that with it."""
    return 2 * [x for part in passes for x in (part.rows, part.columns, part.first, part.stop) if x is not None]


def plan_total(passes: tuple[Pass, ...], count: Callable[[Pass], int], batch: int, heads: int) -> int:
    """The sum of ``count`` (of all planes of a pass) over all batch rows and heads, each of which has a plane."""
    total = 0
    for part in passes:
        batches, planes = part.first.shape[:2]
        of_heads = heads if part.heads is None else len(part.heads)
        assert batch % batches == 0 and of_heads % planes == 0, "a plane for every batch row and head"
        total += count(part) * (batch // batches) * (of_heads // planes)
    return total


def plan_area(passes: tuple[Pass, ...], batch: int, heads: int) -> int:
    """The pairs in ``passes`` over all batch rows and heads."""
    return plan_total(passes, lambda part: int((part.stop - part.first).clamp(min=0).sum()), batch, heads)


def _by_head(pattern: Pattern) -> list[tuple[tuple[int, ...] | None, Pattern]]:
    """The heads that see alike, and what they see."""
    if not any(isinstance(leaf, PerHead) for leaf, _ in pattern.leaves()):
        return [(None, pattern)]
    alike: dict[Pattern, list[int]] = {}
    for head in range(pattern.planes[1]):
        alike.setdefault(pattern.for_head(head), []).append(head)
    return [(tuple(heads), part) for part, heads in alike.items()]


@dataclass(frozen=True)
class _Planner:
    """Plans one pattern (of one group of heads) for queries at positions ``query`` and keys in begin:end."""

    pattern: Pattern
    query: Tensor
    begin: int
    end: int
    heads: tuple[int, ...] | None

    def passes(self) -> list[Pass]:
        simple = simplest(self.pattern)
        gathers, residues = _scattered(simple)
        plain = _taking(simple, dict.fromkeys([*gathers, *residues], NOTHING))
        found = [*self._plain(plain)]
        for n, part in enumerate(gathers):
            values = {**dict.fromkeys(gathers[:n], NOTHING), part: FULL}
            found += self._in_order(_taking(simple, values), plain, self._gathered(part, gathers[:n]))
        done = plain
        for n, residue in enumerate(residues):
            absent = dict.fromkeys([*gathers, *residues[n + 1 :]], NOTHING)
            order = self._by_class(residue, gathers)
            found += self._in_order(_taking(simple, {**absent, residue: FULL}), done, order)
            done = _taking(simple, absent)
        found.sort(key=lambda one: not one.complete)  # stable: those that list a few rows only come last
        if not found or not found[0].complete:
            nothing = torch.full((1, 1, len(self.query), 1), self.end - self.begin, dtype=torch.int32)
            nothing = nothing.to(self.query.device)
            found.insert(0, Pass(None, None, nothing, nothing, self.end - self.begin, self.heads))
        return found

    def _plain(self, pattern: Pattern) -> Iterator[Pass]:
        """The tokens as they come; queries that see everything are taken out as rows of their own."""
        keys = self._seen(pattern, self.query)
        taken = [
            leaf.tokens.holds(self.query[:, None])[..., 0]
            for leaf, _ in pattern.leaves()
            if isinstance(leaf, QueriesAt)
        ]
        if not taken:
            yield from self._pass(None, None, self._clipped(keys))
            return
        held = reduce(torch.logical_or, taken)
        yield from self._pass(None, None, self._clipped(_blanked(keys, held)))
        rows = torch.arange(len(self.query), device=self.query.device).where(held, FAR).sort(dim=-1).values
        if on_host(rows):
            rows = rows[..., : int(held.sum(dim=-1).max())]
        empty = rows == FAR
        keys = pattern.intervals(rows.masked_fill(empty, 0) + self.query[0], self.end)
        seen = self._clipped(_blanked(keys, empty))
        yield from self._pass(rows.masked_fill(empty, -1), None, seen, complete=False)

    def _seen(self, pattern: Pattern, query: Tensor) -> Intervals:
        """The keys that the queries (q_len,) see, some queries at a time."""
        return joined([pattern.intervals(part, self.end) for part in query.split(ROWS)])

    def _in_order(self, pattern: Pattern, done: Pattern, order: _Order) -> Iterator[Pass]:
        """What ``pattern`` sees and ``done`` does not, in ``order``."""
        if order.codes.numel() and pattern != NOTHING:
            query = self.query if order.rows is None else self.query[order.rows]
            keys = self._seen(pattern, query)
            if done != NOTHING:
                keys = keys & self._seen(done, query).complement(self.end)
            yield from self._pass(order.rows, order.columns(self.begin), order.places(keys))

    def _clipped(self, keys: Intervals) -> Intervals:
        """Positions as columns."""
        return Intervals.clipped(keys.first - self.begin, keys.stop - self.begin, self.end - self.begin)

    def _pass(
        self, rows: Tensor | None, columns: Tensor | None, seen: Intervals, complete: bool = True
    ) -> Iterator[Pass]:
        """The pass, unless it is known to be empty (a GPU is not asked)."""
        if on_host(seen.first) and not bool((seen.first < FAR).any()):
            return
        n_columns = self.end - self.begin if columns is None else columns.shape[-1]
        first, stop = (_planes(x.clamp(max=n_columns), 4) for x in (seen.first, seen.stop))
        rows, columns = (None if x is None else _planes(x.to(torch.int32), 3) for x in (rows, columns))
        yield Pass(rows, columns, first.contiguous(), stop.contiguous(), n_columns, self.heads, complete)

    def _gathered(self, part: KeysAt | SummaryKeys, without: Sequence[Pattern]) -> _Order:
        """The keys of ``part`` as one short list, less those of the parts before it."""
        position = part.columns(self.end, self.query.device)
        return _Order.of(self._codes(position, position, without), self.end, None, torch.zeros_like(self.query))

    def _by_class(self, part: Residue, without: Sequence[Pattern]) -> _Order:
        """Keys and queries sorted by class, less the keys that are gathered."""
        position = torch.arange(self.begin, self.end, device=self.query.device)
        codes = self._codes(position % part.step * self.end + position, position, without)
        rows = (self.query % part.step).sort(stable=True).indices
        return _Order.of(codes, self.end, rows, (self.query % part.step)[rows])

    def _codes(self, codes: Tensor, position: Tensor, without: Sequence[Pattern]) -> Tensor:
        """``codes``, ``_NOWHERE`` for keys outside begin:end or listed in ``without``."""
        kept = (position >= self.begin) & (position < self.end)
        for part in without:
            taken = part.visible(self.query[:1, None], position.clamp(0, self.end - 1)[..., None, :], self.end)
            kept = kept & ~taken[..., 0, :]
        return codes.where(kept, _NOWHERE)


_NOWHERE = 2**62


@dataclass(frozen=True)
class _Order:
    """An order of keys by class and position, and one of queries by class.

    codes: (..., n) int64, ascending: class * end + position. A query of class c sees the keys of its class,
    so positions first:stop are the places between the codes c * end + first and c * end + stop.
    """

    codes: Tensor
    end: int
    rows: Tensor | None
    row_class: Tensor

    @classmethod
    def of(cls, codes: Tensor, end: int, rows: Tensor | None, row_class: Tensor) -> _Order:
        codes = codes.sort(dim=-1).values
        if on_host(codes):
            most = int((codes < _NOWHERE).sum(dim=-1).max()) if codes.numel() else 0
            codes = codes[..., :most]
        return cls(codes.contiguous(), end, rows, row_class)

    def columns(self, begin: int) -> Tensor:
        """The key column in each place, -1 for none: (..., n)."""
        return (self.codes % self.end - begin).where(self.codes < _NOWHERE, -1)

    def places(self, keys: Intervals) -> Intervals:
        """Positions (..., rows, slots) as places in this order."""
        lead = self.codes.shape[:-1]

        def found(bound: Tensor) -> Tensor:
            code = bound.clamp(max=self.end).long() + (self.row_class * self.end)[:, None]
            code = code.expand(torch.broadcast_shapes((*lead, 1, 1), code.shape)).contiguous()
            codes = self.codes.expand(*code.shape[:-2], -1).contiguous()
            return torch.searchsorted(codes, code.flatten(-2), out_int32=True).view(code.shape)

        return normalise(found(keys.first), found(keys.stop))


def _scattered(simple: Pattern) -> tuple[list[KeysAt | SummaryKeys], list[Residue]]:
    """The parts that only ever add pairs and are dense in another order.

    What also removes pairs stays in the plain order: the complement of a scattered set is dense there.
    """
    removing = {leaf for leaf, positive in simple.leaves() if not positive}
    adding = [leaf for leaf in dict.fromkeys(leaf for leaf, _ in simple.leaves()) if leaf not in removing]
    gathers = [leaf for leaf in adding if isinstance(leaf, (KeysAt, SummaryKeys))]
    return gathers, [leaf for leaf in adding if isinstance(leaf, Residue)]


def _taking(pattern: Pattern, values: dict[Any, Pattern]) -> Pattern:
    """``pattern`` with some of its parts taken for ``FULL`` or ``NOTHING``."""
    return pattern.mapped(lambda leaf: values.get(leaf, leaf))


def _blanked(keys: Intervals, rows: Tensor) -> Intervals:
    """``keys`` with nothing in the marked ``rows`` (..., rows)."""
    return Intervals(keys.first.masked_fill(rows[..., None], FAR), keys.stop.masked_fill(rows[..., None], FAR))


def _planes(x: Tensor, ndim: int) -> Tensor:
    """Leading axes of one where the tensor has none."""
    return x.reshape((1,) * (ndim - x.ndim) + tuple(x.shape))
