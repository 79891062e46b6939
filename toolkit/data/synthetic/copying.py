"""Selective copy: the marked symbols, in their order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.checks import require, require_positive
from toolkit.data.synthetic.draws import Draws
from toolkit.data.synthetic.task import Row, Task, commonest_share

MARK, COPY, FIRST_SYMBOL = range(3)


@dataclass(frozen=True)
class SelectiveCopy(Task):
    """Symbols, ``count`` of them after a ``[MARK]``; then ``[COPY]`` -> those, in order.

    After Gu and Dao (2023), Mamba, section 3.1, whose noise is blanks; here it is symbols of the same kind, so
    that which symbols occur says next to nothing. All symbols are independent and uniform.

    Token ids: MARK 0, COPY 1, symbols.

    Args:
        length: tokens in a row, the given part of the answer included.
        count: symbols to copy.
        symbols: ids of symbols.

    meta: ``gap`` (batch, count), from the symbol to the position that asks for it; ``order`` (batch, count).

    Raises:
        ValueError: the marked symbols do not fit, or there are under 2 symbols.
    """

    length: int = 256
    count: int = 8
    symbols: int = 32

    def __post_init__(self) -> None:
        self.require_whole()
        require_positive(count=self.count)
        require(self.symbols >= 2, "symbols", self.symbols, "at least 2")
        require(self.length >= 3 * self.count, "length", self.length, f"at least 3 count = {3 * self.count}")

    @property
    def answer_length(self) -> int:
        """The symbols to copy."""
        return self.count

    @property
    def vocab_size(self) -> int:
        """Two marks and the symbols."""
        return FIRST_SYMBOL + self.symbols

    @property
    def chance(self) -> float:
        """Any symbol."""
        return 1 / self.symbols

    @property
    def counting_chance(self) -> float:
        """The commonest symbol's share, when all but one of the answer are already told."""
        return commonest_share(self.length - 3 * self.count + 1, self.symbols)

    def _row(self, draws: Draws) -> Row:
        context = self.length - self.count
        tokens = FIRST_SYMBOL + draws.integers(self.symbols, self.length)
        marks = draws.starts(context, self.count, 2)
        tokens[marks] = MARK
        copied = tokens[marks + 1]
        tokens[context], tokens[context + 1 :] = COPY, copied[:-1]
        asked = np.arange(context, self.length)
        meta = {"gap": asked - (marks + 1), "order": np.arange(self.count)}
        return Row(tokens, asked, copied, np.zeros(self.count, dtype=np.int64), meta)
