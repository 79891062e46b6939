"""Induction: after A came B; A again, at a controlled distance: what comes next?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from toolkit.checks import require, require_positive
from toolkit.data.synthetic.draws import Draws, Ints
from toolkit.data.synthetic.task import Row, Task, commonest_share


class Span(NamedTuple):
    """Distances from ``low`` to ``high``, both included."""

    low: int
    high: int


@dataclass(frozen=True)
class Induction(Task):
    """``... A B ... A`` -> B, with the two A exactly ``distance`` positions apart.

    The query is the last position, q = length - 1; the first A is at q - distance and B at q - distance + 1; there
    is no other A. All other tokens, B among them, are independent and uniform over the other symbols, so whoever does
    not see B has exactly 1 / (symbols - 1). Olsson et al. (2022), In-context Learning and Induction Heads.

    A causal model of L layers of window w sees the first A only up to distance L (w - 1).
    B is one nearer: at a fixed distance "the token distance - 1 back" is right without seeing A, so test reach at mixed
    distances, or from L (w - 1) + 2 on.

    Args:
        length: tokens in a row.
        distance: between the two A, or its lowest and highest: each row then draws its own. Train on a range.
        symbols: token ids, all alike.

    meta: ``distance`` (batch,).

    Raises:
        ValueError: the distance is below 2 (B would be the query) or above length - 1, or there are under 3 symbols.
    """

    length: int = 256
    distance: int | tuple[int, int] = (2, 128)
    symbols: int = 64

    def __post_init__(self) -> None:
        self.require_whole()
        require_positive(length=self.length)
        require(self.symbols >= 3, "symbols", self.symbols, "at least 3")
        object.__setattr__(self, "distance", checked_distance(self.distance, self.length))

    @property
    def span(self) -> Span:
        """The lowest and the highest distance."""
        return Span(self.distance, self.distance) if isinstance(self.distance, int) else Span(*self.distance)

    @property
    def vocab_size(self) -> int:
        """The symbols."""
        return self.symbols

    @property
    def chance(self) -> float:
        """1 / (symbols - 1): any but A."""
        return 1 / (self.symbols - 1)

    @property
    def counting_chance(self) -> float:
        """The commonest symbol's share of the others' places."""
        return commonest_share(self.length - 2, self.symbols - 1)

    def _row(self, draws: Draws) -> Row:
        low, high = self.span
        distance = low + draws.integer(high - low + 1)
        asked = self.length - 1
        cue = draws.integer(self.symbols)
        tokens: Ints = (cue + 1 + draws.integers(self.symbols - 1, self.length)) % self.symbols
        tokens[[asked - distance, asked]] = cue
        answer = tokens[asked - distance + 1]
        return Row(tokens, np.array([asked]), np.array([answer]), np.array([0]), {"distance": distance})


def checked_distance(distance: int | tuple[int, int], length: int) -> int | tuple[int, int]:
    """The same, a list made a tuple.

    Raises:
        ValueError: if it is neither an integer nor two in order, or not between 2 and length - 1.
    """
    right = f"an integer, or the lowest and the highest, between 2 and length - 1 = {length - 1}"
    if isinstance(distance, list):
        distance = tuple(distance)
    is_pair = isinstance(distance, tuple) and len(distance) == 2
    require(is_pair or isinstance(distance, int), "distance", distance, right)
    low, high = (distance, distance) if isinstance(distance, int) else distance
    require(2 <= low <= high < length, "distance", distance, right)
    return distance
