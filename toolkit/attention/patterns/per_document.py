"""Patterns whose positions restart in each packed document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from toolkit.attention.intervals import FAR, Intervals
from toolkit.attention.patterns.bands import Causal, SlidingWindow, Window
from toolkit.attention.patterns.combinations import joint_device, joint_planes, simplest
from toolkit.attention.patterns.documents import Documents
from toolkit.attention.patterns.pattern import Full, Pattern
from toolkit.attention.patterns.positions import Marks
from toolkit.attention.patterns.random_blocks import RandomBlocks
from toolkit.attention.patterns.scattered import Residue, SummaryKeys
from toolkit.attention.patterns.tokens import KeysAt, LeadingQueries, QueriesAt
from toolkit.checks import require

RELATIVE = (Full, Causal, Window, SlidingWindow, Residue)
"""Parts that only ask for i - j, which is the same wherever positions start."""


@dataclass(frozen=True, init=False, repr=False)
class PerDocument(Pattern):
    """Query i sees key j when both are of one document and ``pattern`` sees them, positions counted from its start.

    ``Documents(ids) & Sinks(1)`` lets only the first document of a row keep its sink;
    ``PerDocument(ids, Sinks(1))`` gives each its own. What it sees of a document is what ``pattern`` sees of
    it alone, where the document is as long as its tokens before the last key.

    Args:
        ids: as for :class:`Documents`, the tokens of each document side by side; or a ``Documents``.
        pattern: any pattern; the tensors of one that holds any are indexed by position in the document.

    Raises:
        ValueError: as :class:`Documents` does, and if a document's tokens are not side by side.
    """

    documents: Documents
    pattern: Pattern

    def __init__(self, ids: Tensor | Documents, pattern: Pattern) -> None:
        documents = ids if isinstance(ids, Documents) else Documents(ids)
        require(isinstance(pattern, Pattern), "pattern", pattern, "a pattern")
        right = "1: each document's tokens side by side, and its id no other's"
        require(documents.most == 1, "ids: stretches a document lies in", documents.most, right)
        object.__setattr__(self, "documents", documents)
        object.__setattr__(self, "pattern", pattern)
        object.__setattr__(self, "planes", joint_planes((documents, pattern)))
        object.__setattr__(self, "device", joint_device((documents, pattern)))

    @property
    def definition(self) -> Pattern:
        """The same done to each part of ``pattern``: most need no shift, or are sets of tokens."""
        parts: dict[Pattern, Pattern] = {}

        def local(part: Pattern) -> Pattern:
            if part not in parts:
                parts[part] = self._local(part)
            return parts[part]

        pushed = simplest(self.pattern).mapped(local)
        return self if pushed == self else self.documents & pushed

    def _local(self, part: Pattern) -> Pattern:
        """One part with positions that restart; what it says of pairs across documents does not matter."""
        if isinstance(part, RELATIVE):
            return part
        tables, length = self.documents.tables, self.documents.ids.shape[-1]
        position = torch.arange(length, device=self.documents.ids.device)
        local, one = position - tables.bounds(position, 1)[0], position[:1, None]
        if isinstance(part, (KeysAt, SummaryKeys)):
            seen = part.visible(one, local[..., None, :], length)
            return KeysAt(Marks(rearrange(seen, "... 1 n -> (...) n")))
        if isinstance(part, (QueriesAt, LeadingQueries)):
            seen = part.visible(local[..., :, None], one, length)
            return QueriesAt(Marks(rearrange(seen, "... n 1 -> (...) n")))
        return PerDocument(self.documents, part)

    def visible(self, query: Tensor, key: Tensor, end: int | Tensor) -> Tensor:
        """Both in one document, and seen there."""
        (start, stop), (other, _) = (self.documents.tables.bounds(position, 2) for position in (query, key))
        length: Any = stop.clamp(max=end) - start  # one for each query, where the others get one for all
        seen = self.pattern.visible(query - start, key - other, length)
        return seen & self.documents.visible(query, key, end)

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """Those of the parts; of a single part, its own moved to where the document lies."""
        definition = self.definition
        if definition is not self:
            return definition.intervals(query, end)
        start, stop = self.documents.tables.bounds(query, 1)
        if isinstance(self.pattern, RandomBlocks):  # the one pattern that asks where its keys end
            keys = self.pattern.runs((query - start) // self.pattern.block, FAR, stop.clamp(max=end) - start)
        else:
            keys = self.pattern.intervals(query - start, end)
        start, stop = start[..., None], stop[..., None]
        first, last = ((bound.long() + start).clamp(start, stop) for bound in (keys.first, keys.stop))
        return Intervals.clipped(first, last, end)

    def leaves(self, positive: bool = True) -> Iterator[tuple[Pattern, bool]]:
        """Itself, and what it evaluates: a plan asks whether that differs by head."""
        yield self, positive
        yield from self.pattern.leaves(positive)

    def for_head(self, head: int) -> Pattern:
        """The same of the head's pattern."""
        return PerDocument(self.documents, self.pattern.for_head(head))

    def check(self, q_end: int, end: int) -> None:
        """Every token needs an id, and the pattern must fit the longest document."""
        self.documents.check(q_end, end)
        self.pattern.check(*(min(max(1, self.documents.longest), length) for length in (q_end, end)))

    def until(self, end: int) -> Pattern:
        """The same of what the pattern is until then."""
        return PerDocument(self.documents, self.pattern.until(end))

    def written(self, tensor: Callable[[Tensor], str]) -> str:
        """``PerDocument(ids, pattern)``."""
        return f"PerDocument({tensor(self.documents.ids)}, {self.pattern.written(tensor)})"
