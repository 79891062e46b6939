"""Passkey: one number, marked, somewhere in the filler; repeat it at the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.checks import require, require_positive
from toolkit.data.synthetic.draws import Draws
from toolkit.data.synthetic.task import Row, Task, commonest_share

TEN = 10
OPEN, CLOSE, ASK, FIRST_FILLER = range(TEN, TEN + 4)


@dataclass(frozen=True)
class Passkey(Task):
    """Filler with ``[KEY] d1 ... dm [/KEY]`` at a depth, then ``[ASK]`` -> d1 ... dm.

    Mohtashami and Jaggi (2023), Landmark Attention, as token ids. Half of the filler is a cycle of words and half, at
    random places, are digits outside the brackets, independent and uniform like the key's own: without them the digits
    that occur at all would be the answer.

    Token ids: digits 0-9, KEY 10, /KEY 11, ASK 12, then the words of the cycle.

    Args:
        length: tokens in a row, the given part of the answer included.
        depth: where the key is, from 0 (the start) to 1 (just before the question); None draws it for each row.
        digits: m.
        words: ids of the cycle.

    meta: ``depth`` (batch,), ``gap`` (batch,) from the key's first digit to ASK, which asks for it.

    Raises:
        ValueError: the depth is outside 0..1 or the key does not fit.
    """

    length: int = 256
    depth: float | None = None
    digits: int = 5
    words: int = 16

    def __post_init__(self) -> None:
        self.require_whole()
        require_positive(digits=self.digits, words=self.words)
        least = 2 * self.digits + 2
        require(self.length >= least, "length", self.length, f"at least 2 digits + 2 = {least}")
        right = "between 0 and 1, or None"
        require(self.depth is None or 0 <= self.depth <= 1, "depth", self.depth, right)
        if self.depth is not None:
            object.__setattr__(self, "depth", float(self.depth))  # equal tasks print alike, and so draw alike

    @property
    def answer_length(self) -> int:
        """The digits."""
        return self.digits

    @property
    def vocab_size(self) -> int:
        """Digits, three marks and the words of the cycle."""
        return FIRST_FILLER + self.words

    @property
    def chance(self) -> float:
        """Any digit."""
        return 1 / TEN

    @property
    def counting_chance(self) -> float:
        """The commonest digit's share, when all but one of the key's are already told."""
        return commonest_share(1 + self._room // 2, TEN)

    @property
    def _room(self) -> int:
        """Slots of filler."""
        return self.length - (2 * self.digits + 2)

    def _row(self, draws: Draws) -> Row:
        key = draws.integers(TEN, self.digits)
        filler = FIRST_FILLER + (np.arange(self._room) + draws.integer(self.words)) % self.words
        decoys = draws.distinct(self._room, self._room // 2)
        filler[decoys] = draws.integers(TEN, len(decoys))
        drawn = draws.integer(self._room + 1)
        place = drawn if self.depth is None else round(self.depth * self._room)
        parts = (filler[:place], [OPEN], key, [CLOSE], filler[place:], [ASK], key[:-1])
        tokens = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
        asked = np.arange(self.length - self.digits, self.length)
        depth = place / self._room if self._room else 0.0
        meta = {"depth": depth, "gap": float(asked[0] - (place + 1))}
        return Row(tokens, asked, key, np.zeros(self.digits, dtype=np.int64), meta)
