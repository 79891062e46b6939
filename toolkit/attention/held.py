"""The most recently used of what is dear to make and holds tensors: how many are kept is a matter of memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from torch import Tensor

Value = TypeVar("Value")

HELD = 8
"""So many are kept whatever their size: enough for the layers of one process that share a few patterns."""

HELD_BYTES = 2**26
"""More are kept while all together take no more: the blocks of a ring are many, and small; each is planned by itself.
Patterns that are made anew for every step leave no more than this behind."""

ENTRY_BYTES = 2**14
"""What an entry takes at least, in Python objects."""


class Held(Generic[Value]):
    """Values by key, the newest ``HELD`` of them and more as long as they fit in ``HELD_BYTES``.

    Attributes:
        made: how many have been made so far.
    """

    def __init__(self) -> None:
        self.made = 0
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, make: Callable[[], Value], tensors: Callable[[Value], Iterable[Tensor]]) -> Value:
        """What is kept under ``key``, made if there is none; ``tensors`` says what one holds."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key][0]
        value = make()
        self.made += 1
        size = ENTRY_BYTES + sum(tensor.nbytes for tensor in tensors(value))
        self._entries[key] = value, size
        self._nbytes += size
        while len(self._entries) > HELD and self._nbytes > HELD_BYTES:
            _, (_, freed) = self._entries.popitem(last=False)
            self._nbytes -= freed
        return value
