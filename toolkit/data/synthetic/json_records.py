"""Retrieval from JSON as bytes: for models without a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from toolkit.checks import require, require_positive
from toolkit.data.synthetic.draws import Draws, Ints
from toolkit.data.synthetic.task import Row, Task, commonest_share

HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


@dataclass(frozen=True)
class JsonKeyValue(Task):
    r"""``{"3f2a": "90b1", ...}`` and a newline, then ``"3f2a": "`` -> ``90b1``, a token for each byte.

    The key-value task of Liu et al. (2023), Lost in the Middle, and HELMET, with random hexadecimal digits in place of
    UUIDs. Ids are those of :class:`toolkit.data.ByteTokenizer`. Keys of a row differ; values are independent.

    Args:
        pairs: entries of the object.
        key_length: digits of a key.
        value_length: digits of a value.

    meta: ``depth`` (batch,), the entry's place among the others from 0 to 1; ``gap`` (batch,), from the value's first
    byte to the position that asks for it.

    Raises:
        ValueError: a value is not positive, or there are fewer keys of that length than pairs.
    """

    pairs: int = 8
    key_length: int = 4
    value_length: int = 4
    length: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.require_whole()
        require_positive(pairs=self.pairs, key_length=self.key_length, value_length=self.value_length)
        right = f"at least enough for pairs={self.pairs} keys that differ, of 16^key_length"
        require(16**self.key_length >= self.pairs, "key_length", self.key_length, right)
        # An entry is "key": "value", and the last has no comma and space but the closing brace and a newline.
        question = self.key_length + 5 + self.value_length - 1
        object.__setattr__(self, "length", 1 + self.pairs * self._entry + question)

    @property
    def answer_length(self) -> int:
        """The digits of a value."""
        return self.value_length

    @property
    def vocab_size(self) -> int:
        """Bytes."""
        return 256

    @property
    def chance(self) -> float:
        """Any hexadecimal digit."""
        return 1 / len(HEX)

    @property
    def counting_chance(self) -> float:
        """The commonest digit's share among the values, keys left out: these may be known to be different."""
        return commonest_share((self.pairs - 1) * self.value_length + 1, len(HEX))

    @property
    def _entry(self) -> int:
        return self.key_length + self.value_length + 8

    def _row(self, draws: Draws) -> Row:
        keys = self._keys(draws)
        values = [_digits(one) for one in draws.integers(16, self.pairs * self.value_length).reshape(self.pairs, -1)]
        place = draws.integer(self.pairs)
        entries = ", ".join(f'"{key}": "{value}"' for key, value in zip(keys, values, strict=True))
        text = f'{{{entries}}}\n"{keys[place]}": "{values[place][:-1]}'
        tokens = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
        assert len(tokens) == self.length
        asked = np.arange(self.length - self.value_length, self.length)
        source = 1 + place * self._entry + self.key_length + 5
        meta = {"depth": place / max(1, self.pairs - 1), "gap": float(asked[0] - source)}
        labels = np.frombuffer(values[place].encode(), dtype=np.uint8).astype(np.int64)
        return Row(tokens, asked, labels, np.zeros(self.value_length, dtype=np.int64), meta)

    def _keys(self, draws: Draws) -> list[str]:
        keys: dict[str, None] = {}  # in the order of drawing
        while len(keys) < self.pairs:
            keys[_digits(draws.integers(16, self.key_length))] = None
        return list(keys)


def _digits(numbers: Ints) -> str:
    return HEX[numbers].tobytes().decode()
