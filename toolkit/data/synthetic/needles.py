"""Needles in a haystack: one of many keys, all the values of a key, or several keys at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.checks import require, require_positive
from toolkit.data.synthetic.draws import Draws
from toolkit.data.synthetic.task import Row, Task, mean_chance

NEEDLE, ASK, FIRST_KEY = range(3)


@dataclass(frozen=True)
class Needles(Task):
    """``[NEEDLE] key value`` at random places in filler, then ``[ASK] key`` -> the key's values in order.

    RULER's three kinds (Hsieh et al., 2024): multi-key is ``keys`` > 1 with one query and one value, multi-value is
    ``values_per_key`` > 1, multi-query is ``queries`` > 1. All keys and all values of a row differ, so none answers by
    accident, and the values of a key are asked in the order in which they stand, so there is one right answer.

    Token ids: NEEDLE 0, ASK 1, keys, values, filler.

    Args:
        length: tokens in a row, the questions included.
        keys: keys in a row.
        values_per_key: needles of each key.
        queries: keys asked, one after another.
        key_ids: ids of keys.
        value_ids: ids of values.
        fillers: ids of filler.

    meta: ``depth`` and ``gap`` (batch, asked): where the asked value stands, from 0 to 1 of the haystack, and how far
    before the position that asks for it.

    Raises:
        ValueError: the needles and questions do not fit, or there are too few ids or keys.
    """

    length: int = 256
    keys: int = 8
    values_per_key: int = 1
    queries: int = 1
    key_ids: int = 64
    value_ids: int = 64
    fillers: int = 16

    def __post_init__(self) -> None:
        self.require_whole()
        require_positive(keys=self.keys, values_per_key=self.values_per_key, fillers=self.fillers)
        require(1 <= self.queries <= self.keys, "queries", self.queries, f"between 1 and keys={self.keys}")
        require(self.key_ids >= self.keys, "key_ids", self.key_ids, f"at least keys={self.keys}")
        right = f"at least keys * values_per_key = {self._needles}"
        require(self.value_ids >= self._needles, "value_ids", self.value_ids, right)
        least = 3 * self._needles + self._questions
        right = f"at least {least}: 3 a needle and values_per_key + 1 a query"
        require(self.length >= least, "length", self.length, right)

    @property
    def answer_length(self) -> int:
        """The values of a key."""
        return self.values_per_key

    @property
    def vocab_size(self) -> int:
        """Two marks, keys, values and filler."""
        return FIRST_KEY + self.key_ids + self.value_ids + self.fillers

    @property
    def chance(self) -> float:
        """Any value that is not already told."""
        return mean_chance([self.value_ids - told for told in self._told])

    @property
    def answer_chance(self) -> float:
        """The product over an answer's tokens, averaged over the queries."""
        odds = 1 / (self.value_ids - np.array(self._told, dtype=float))
        return float(odds.reshape(self.queries, self.values_per_key).prod(axis=1).mean())

    @property
    def counting_chance(self) -> float:
        """Any value of the row that is not already told."""
        return mean_chance([self._needles - told for told in self._told])

    @property
    def _told(self) -> list[int]:
        """How many values the questions so far have told, at each asked token."""
        return [query * (self.values_per_key - 1) + one for query in range(self.queries) for one in self._each]

    @property
    def _each(self) -> range:
        return range(self.values_per_key)

    @property
    def _needles(self) -> int:
        return self.keys * self.values_per_key

    @property
    def _questions(self) -> int:
        return self.queries * (self.values_per_key + 1)

    def _row(self, draws: Draws) -> Row:
        haystack = self.length - self._questions
        keys = FIRST_KEY + draws.distinct(self.key_ids, self.keys)
        values = FIRST_KEY + self.key_ids + draws.distinct(self.value_ids, self._needles)
        owner = draws.shuffled(np.repeat(np.arange(self.keys), self.values_per_key))
        starts = draws.starts(haystack, self._needles, 3)
        tokens = FIRST_KEY + self.key_ids + self.value_ids + draws.integers(self.fillers, self.length)
        tokens[starts], tokens[starts + 1], tokens[starts + 2] = NEEDLE, keys[owner], values
        asked_keys = draws.distinct(self.keys, self.queries)
        # needles[q, j] is the j-th needle of the q-th key asked
        needles = np.stack([np.flatnonzero(owner == key) for key in asked_keys])
        marks = np.full((self.queries, 1), ASK)
        questions = np.concatenate([marks, keys[asked_keys][:, None], values[needles[:, :-1]]], axis=1)
        tokens[haystack:] = questions.reshape(-1)
        asked = haystack + np.arange(self._questions).reshape(self.queries, -1)[:, 1:]
        places = starts[needles] + 2
        meta = {"depth": (places / (haystack - 1)).reshape(-1), "gap": (asked - places).reshape(-1)}
        answers = np.repeat(np.arange(self.queries), self.values_per_key)
        return Row(tokens, asked.reshape(-1), values[needles].reshape(-1), answers, meta)
