"""Multi-query associative recall: many pairs, then many keys, each to be answered with its value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.checks import require, require_positive
from toolkit.data.synthetic.draws import Draws
from toolkit.data.synthetic.task import Row, Task


@dataclass(frozen=True)
class MQAR(Task):
    """``k1 v1 ... kK vK``, then each key once more among filler; at each the value is asked.

    Arora et al. (2024), Zoology: the slots of the queries are drawn without replacement with probability
    proportional to slot^(power - 1), so most are near. Unlike zoology's code everything is seeded, filler comes from a
    range of its own (no key is there that is not asked), and which key takes which slot is independent of its place
    among the pairs. Values do not follow the queries.

    Token ids: keys, then values, then filler.

    Args:
        length: tokens in a row, at least 4 a pair.
        pairs: K, all of them asked.
        keys: ids of keys; those of a row differ.
        values: ids of values; those of a row differ.
        fillers: ids of filler.
        power: a of the power law of gaps.

    meta: ``gap`` (batch, pairs), from the key's first place to its query.

    Raises:
        ValueError: a row has no room, or there are fewer keys or values than pairs.
    """

    length: int = 256
    pairs: int = 16
    keys: int = 64
    values: int = 64
    fillers: int = 16
    power: float = 0.01

    def __post_init__(self) -> None:
        self.require_whole()
        require_positive(pairs=self.pairs, fillers=self.fillers, power=self.power)
        require(self.power <= 32, "power", self.power, "at most 32: above, the last slot has all the weight there is")
        right = f"at least 4 pairs = {4 * self.pairs}"
        require(self.length >= 4 * self.pairs, "length", self.length, right)
        for name, count in (("keys", self.keys), ("values", self.values)):
            require(count >= self.pairs, name, count, f"at least pairs={self.pairs}")

    @property
    def vocab_size(self) -> int:
        """Keys, values and filler."""
        return self.keys + self.values + self.fillers

    @property
    def chance(self) -> float:
        """Any value."""
        return 1 / self.values

    @property
    def counting_chance(self) -> float:
        """Any of the row's values."""
        return 1 / self.pairs

    def _row(self, draws: Draws) -> Row:
        keys = draws.distinct(self.keys, self.pairs)
        values = self.keys + draws.distinct(self.values, self.pairs)
        tokens = self.keys + self.values + draws.integers(self.fillers, self.length)
        tokens[0 : 2 * self.pairs : 2], tokens[1 : 2 * self.pairs : 2] = keys, values
        slots = np.arange(1, (self.length - 2 * self.pairs) // 2 + 1)
        asked = 2 * self.pairs + 2 * draws.weighted(slots.astype(np.float64) ** (self.power - 1), self.pairs)
        which = draws.distinct(self.pairs, self.pairs)
        tokens[asked] = keys[which]
        return Row(tokens, asked, values[which], np.arange(self.pairs), {"gap": asked - 2 * which})
