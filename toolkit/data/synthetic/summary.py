"""What one window layer cannot do: the first token of all, and a summary of the whole context."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from toolkit.checks import require, require_choice
from toolkit.data.synthetic.draws import Draws, Ints
from toolkit.data.synthetic.task import Row, Task, commonest_share

ASK = 0
ONE, ZERO, MARK, FIRST_FILLER = range(1, 5)


@dataclass(frozen=True)
class FirstTokenRecall(Task):
    """``s ...`` symbols ``... [ASK]`` -> s, the first token of the row.

    All symbols are independent and uniform. A causal model that keeps the first tokens (sinks) solves it at any length.

    Token ids: ASK 0, symbols.

    Args:
        length: tokens in a row.
        symbols: ids of symbols.

    meta: ``gap`` (batch,), always length - 1.

    Raises:
        ValueError: under 2 tokens or under 2 symbols.
    """

    length: int = 256
    symbols: int = 32

    def __post_init__(self) -> None:
        self.require_whole()
        require(self.length >= 2, "length", self.length, "at least 2")
        require(self.symbols >= 2, "symbols", self.symbols, "at least 2")

    @property
    def vocab_size(self) -> int:
        """ASK and the symbols."""
        return 1 + self.symbols

    @property
    def chance(self) -> float:
        """Any symbol."""
        return 1 / self.symbols

    @property
    def counting_chance(self) -> float:
        """The commonest symbol's share."""
        return commonest_share(self.length - 1, self.symbols)

    def _row(self, draws: Draws) -> Row:
        tokens = 1 + draws.integers(self.symbols, self.length)
        tokens[-1] = ASK
        return _last(tokens, int(tokens[0]), {"gap": self.length - 1})


@dataclass(frozen=True)
class GlobalSummary(Task):
    """Bits (ONE or ZERO) in filler, ``marks`` of them after a ``[MARK]``; ``[ASK]`` -> a summary of those marked.

    ``"parity"``: ONE if the number of marked ONE is odd, else ZERO. All bits are independent and fair, so whoever
    misses one marked bit has exactly 1/2. ``"count"``: how many marked bits are ONE, 0..marks, each equally likely; the
    unmarked bits are the marked ones' complement, so every row has as many ONE as ZERO and counts say nothing.

    Token ids: ASK 0, ONE 1, ZERO 2, MARK 3, filler, then, for ``"count"``, the numbers 0..marks.

    Args:
        length: tokens in a row.
        marks: marked bits; as many are not marked.
        kind: ``"parity"`` or ``"count"``.
        fillers: ids of filler.

    meta: ``ones`` (batch,), the marked ONE.

    Raises:
        ValueError: the bits do not fit, or a value is out of range.
    """

    length: int = 256
    marks: int = 16
    kind: str = "parity"
    fillers: int = 16

    def __post_init__(self) -> None:
        self.require_whole()
        require_choice("kind", self.kind, ("parity", "count"))
        require(self.marks >= 1, "marks", self.marks, "at least 1")
        require(self.fillers >= 1, "fillers", self.fillers, "at least 1")
        least = 3 * self.marks + 1
        require(self.length >= least, "length", self.length, f"at least 3 marks + 1 = {least}")

    @property
    def vocab_size(self) -> int:
        """ASK, two bits, MARK, filler and, for counts, the numbers."""
        return self._first_number + (self.marks + 1 if self.kind == "count" else 0)

    @property
    def chance(self) -> float:
        """Either bit, or any number."""
        return 1 / 2 if self.kind == "parity" else 1 / (self.marks + 1)

    @property
    def counting_chance(self) -> float:
        """The likelier parity given how many ONE there are in all; nothing to gain for ``"count"``."""
        if self.kind == "count":
            return self.chance
        ways = [math.comb(self.marks, ones) for ones in range(self.marks + 1)]
        right = 0
        for total in range(2 * self.marks + 1):
            split = [ways[one] * ways[total - one] if 0 <= total - one <= self.marks else 0 for one in range(len(ways))]
            right += max(sum(split[0::2]), sum(split[1::2]))
        return right / 4**self.marks

    @property
    def _first_number(self) -> int:
        return FIRST_FILLER + self.fillers

    def _row(self, draws: Draws) -> Row:
        tokens = FIRST_FILLER + draws.integers(self.fillers, self.length)
        # Units of one bit each, marked or not, then spread: as blocks of one after the marks are taken out.
        marked = draws.shuffled(np.repeat([True, False], self.marks))
        starts = np.sort(draws.distinct(self.length - 1 - self.marks, 2 * self.marks))
        bits_at = starts + np.cumsum(marked)
        tokens[bits_at[marked] - 1] = MARK
        ones, unmarked = self._bits(draws)
        tokens[bits_at[marked]] = np.where(ones, ONE, ZERO)
        tokens[bits_at[~marked]] = np.where(unmarked, ONE, ZERO)
        tokens[-1] = ASK
        total = int(ones.sum())
        parity = ONE if total % 2 else ZERO
        label = parity if self.kind == "parity" else self._first_number + total
        return _last(tokens, label, {"ones": total})

    def _bits(self, draws: Draws) -> tuple[Ints, Ints]:
        """The marked and the unmarked bits, (marks,) each."""
        if self.kind == "parity":
            return draws.integers(2, self.marks), draws.integers(2, self.marks)
        total = draws.integer(self.marks + 1)
        bits = (np.arange(self.marks) < total).astype(np.int64)
        return draws.shuffled(bits), draws.shuffled(1 - bits)


def _last(tokens: Ints, label: int, meta: dict[str, float]) -> Row:
    """A row that asks one token, at its last position."""
    return Row(tokens, np.array([len(tokens) - 1]), np.array([label]), np.array([0]), meta)
