"""Variable tracking: which value has a name that was set from a name that was set from a value?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.checks import require, require_positive
from toolkit.data.synthetic.draws import Draws
from toolkit.data.synthetic.task import Row, Task

LET, ASK, FIRST_NAME = range(3)


@dataclass(frozen=True)
class VariableTracking(Task):
    """``[LET] x0 value``, ``[LET] x1 x0``, ... of several chains, mixed, in filler; then ``[ASK] name`` -> its value.

    After RULER's variable tracking (Hsieh et al., 2024), which lists a chain's names; here a name of every number of
    hops is asked by itself, in random order and each of a chain drawn anew, so no question helps with another. A
    statement always stands after the one it refers to. All names and all values of a row differ.

    Token ids: LET 0, ASK 1, names, values, filler.

    Args:
        length: tokens in a row, the questions included.
        chains: chains in a row.
        hops: the longest chain of references: names of 0 (set from the value itself) to ``hops`` are asked.
        names: ids of names.
        values: ids of values.
        fillers: ids of filler.

    meta: ``hops`` (batch, hops + 1) and ``gap``, from the place of the value to the question.

    Raises:
        ValueError: the statements and questions do not fit, or there are too few ids.
    """

    length: int = 256
    chains: int = 4
    hops: int = 3
    names: int = 64
    values: int = 64
    fillers: int = 16

    def __post_init__(self) -> None:
        self.require_whole()
        require_positive(chains=self.chains, fillers=self.fillers)
        require(self.hops >= 0, "hops", self.hops, "at least 0")
        right = f"at least chains * (hops + 1) = {self._statements}"
        require(self.names >= self._statements, "names", self.names, right)
        require(self.values >= self.chains, "values", self.values, f"at least chains={self.chains}")
        least = 3 * self._statements + 2 * (self.hops + 1)
        require(self.length >= least, "length", self.length, f"at least {least}: 3 a statement and 2 a question")

    @property
    def vocab_size(self) -> int:
        """Two marks, names, values and filler."""
        return FIRST_NAME + self.names + self.values + self.fillers

    @property
    def chance(self) -> float:
        """Any value."""
        return 1 / self.values

    @property
    def counting_chance(self) -> float:
        """Any of the row's values."""
        return 1 / self.chains

    @property
    def _statements(self) -> int:
        return self.chains * (self.hops + 1)

    def _row(self, draws: Draws) -> Row:
        depth = self.hops + 1
        haystack = self.length - 2 * depth
        names = FIRST_NAME + draws.distinct(self.names, self._statements).reshape(self.chains, depth)
        values = FIRST_NAME + self.names + draws.distinct(self.values, self.chains)
        sources = np.concatenate([values[:, None], names[:, :-1]], axis=1)
        # which chain has each statement; a stable sort gives the places of each chain in order
        owner = draws.shuffled(np.repeat(np.arange(self.chains), depth))
        order = np.argsort(owner, kind="stable").reshape(self.chains, depth)
        starts = draws.starts(haystack, self._statements, 3)[order]
        tokens = FIRST_NAME + self.names + self.values + draws.integers(self.fillers, self.length)
        tokens[starts], tokens[starts + 1], tokens[starts + 2] = LET, names, sources
        hops = draws.distinct(depth, depth)
        chain = draws.integers(self.chains, depth)
        asked = haystack + 1 + 2 * np.arange(depth)
        tokens[asked - 1], tokens[asked] = ASK, names[chain, hops]
        meta = {"hops": hops, "gap": asked - (starts[chain, 0] + 2)}
        return Row(tokens, asked, values[chain], np.arange(depth), meta)
