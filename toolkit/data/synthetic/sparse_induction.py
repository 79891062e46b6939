"""Sparse induction: a few pairs in filler, then one of their keys again, at a controlled distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.checks import require, require_positive
from toolkit.data.synthetic.draws import Draws, Ints
from toolkit.data.synthetic.induction import Span, checked_distance
from toolkit.data.synthetic.task import Row, Task, commonest_share


@dataclass(frozen=True)
class SparseInduction(Task):
    """``. . A1 B1 . . . A2 B2 . . A1`` -> B1, with the two A1 exactly ``distance`` positions apart; dots are filler.

    :class:`Induction` for small models: there is little to remember, and tokens of other kinds say where. The query is
    the last position, q = length - 1; its key is at q - distance and the value that is asked at q - distance + 1. The
    other pairs stand anywhere else. With more ``questions`` than one, some of their keys are asked too, each somewhere
    after its pair: a row then teaches more. Keys of a row differ; values are independent and uniform, so whoever does
    not see the asked one has exactly 1 / values, whatever else is seen.

    Token ids: keys, then values, then filler.

    Args:
        length: tokens in a row.
        distance: between the two places of the last key, or its lowest and highest: each row then draws its own. Train
            on a range. At 2 the value stands just before the query.
        pairs: in a row.
        questions: keys that are asked, the last token's among them.
        keys: ids of keys.
        values: ids of values.
        fillers: ids of filler.

    meta: ``distance`` (batch, questions), from the pair's key to the key that asks.

    Raises:
        ValueError: the distance is below 2 or above length - 1, the pairs and questions do not fit, there are too few
            ids, or more questions than pairs.
    """

    length: int = 256
    distance: int | tuple[int, int] = (2, 128)
    pairs: int = 4
    questions: int = 1
    keys: int = 16
    values: int = 16
    fillers: int = 16

    def __post_init__(self) -> None:
        self.require_whole()
        require_positive(pairs=self.pairs, fillers=self.fillers)
        require(self.keys >= self.pairs, "keys", self.keys, f"at least pairs={self.pairs}")
        require(1 <= self.questions <= self.pairs, "questions", self.questions, f"from 1 to pairs={self.pairs}")
        require(self.values >= 2, "values", self.values, "at least 2")
        least = 2 * self.pairs + self.questions + 1
        require(self.length >= least, "length", self.length, f"at least 2 pairs + questions + 1 = {least}")
        object.__setattr__(self, "distance", checked_distance(self.distance, self.length))

    @property
    def span(self) -> Span:
        """The lowest and the highest distance."""
        return Span(self.distance, self.distance) if isinstance(self.distance, int) else Span(*self.distance)

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
        """The commonest value's share of the pairs, at the last question; others may come when one pair is seen."""
        return (commonest_share(self.pairs, self.values) + self.questions - 1) / self.questions

    def _row(self, draws: Draws) -> Row:
        low, high = self.span
        distance = low + draws.integer(high - low + 1)
        keys = draws.distinct(self.keys, self.pairs)
        values = self.keys + draws.integers(self.values, self.pairs)
        tokens = self.keys + self.values + draws.integers(self.fillers, self.length)
        starts, asked = self._others(draws, self.length - 1 - distance)
        starts, asked = np.append(starts, self.length - 1 - distance), np.append(asked, self.length - 1)
        # the asked pairs are the last ones, in the order of their questions
        tokens[starts], tokens[starts + 1] = keys, values
        tokens[asked] = keys[-self.questions :]
        meta = {"distance": asked - starts[-self.questions :]}
        return Row(tokens, asked, values[-self.questions :], np.arange(self.questions), meta)

    def _others(self, draws: Draws, first: int) -> tuple[Ints, Ints]:
        """Where the other pairs start and are asked, when ``first`` and the place after it are taken.

        Each pair takes one of the slots, an asked one a later one too; a pair's slot is two places wide.
        """
        pairs, asked = self.pairs - 1, self.questions - 1
        while True:
            slots = np.sort(draws.distinct(self.length - 3 - pairs, pairs + asked))
            which = draws.distinct(len(slots), len(slots))
            both = np.sort(which[: 2 * asked].reshape(asked, 2), axis=1)
            opened = np.concatenate([which[2 * asked :], both[np.argsort(both[:, 1]), 0]])
            wide = np.zeros(len(slots), dtype=np.int64)
            wide[opened] = 1
            places = slots + np.cumsum(wide) - wide
            if first - 1 not in places[opened]:  # there a pair would stand on both sides of the asked one
                places = places + 2 * (places >= first)
                return places[opened], places[np.sort(both[:, 1])]
