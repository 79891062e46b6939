"""Byte-level byte-pair encoding, trained on the corpus itself (Sennrich 2016; Radford 2019, section 2.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toolkit.checks import require
from toolkit.data.tokenizer import Tokens, token_dtype, token_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

SEPARATOR = "<|endoftext|>"
SMALLEST_VOCABULARY = 257
INSTALL = 'pip install "sparse-toolkit[hf]"'


def library() -> Any:
    """Import the ``tokenizers`` library.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(f"tokenizer='bpe' needs the tokenizers library: {INSTALL}") from error
    return tokenizers


def byte_characters() -> dict[str, int]:
    """Give the byte that each character of a byte-level vocabulary stands for (Radford 2019's table).

    A printable byte is its own Latin-1 character; the others take the characters from 256 on, in order.
    """
    spans = (("!", "~"), ("¡", "¬"), ("®", "ÿ"))
    printable = [byte for first, last in spans for byte in range(ord(first), ord(last) + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    pairs = [(chr(byte), byte) for byte in printable]
    return dict(pairs + [(chr(256 + place), byte) for place, byte in enumerate(hidden)])


class BPETokenizer:
    """Byte-level BPE over the ``tokenizers`` library: every UTF-8 text encodes, and decodes to itself.

    The separator is the library's special token ``<|endoftext|>``; the same characters inside a text are
    ordinary text. To agree with ``ByteTokenizer`` the separator stands for one byte 0, and decodes to it.

    Args:
        trained: a byte-level BPE tokenizer of the library with ``<|endoftext|>`` in its vocabulary.

    Raises:
        ValueError: that token is missing.
    """

    def __init__(self, trained: Library) -> None:
        self._vocabulary = trained.get_vocab()
        right = f"a tokenizer with {SEPARATOR} in its vocabulary"
        require(SEPARATOR in self._vocabulary, "trained", trained.model, right)
        trained.encode_special_tokens = True  # so that "<|endoftext|>" in a document does not end it
        self._library = trained

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BPETokenizer:
        """Learn ``vocab_size - 257`` merges from texts, beside the 256 bytes and the separator.

        Raises:
            ValueError: vocab_size is below 257, or above what the texts have repeated pairs for.
            ImportError: the ``tokenizers`` library is not installed.
        """
        right = f"at least {SMALLEST_VOCABULARY}: 256 bytes and the separator"
        require(vocab_size >= SMALLEST_VOCABULARY, "vocab_size", vocab_size, right)
        tokenizers = library()
        trained = tokenizers.Tokenizer(tokenizers.models.BPE())
        trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trained.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[SEPARATOR],
            initial_alphabet=sorted(byte_characters()),
            show_progress=False,
        )
        trained.train_from_iterator(texts, trainer=trainer)
        learned = trained.get_vocab_size()
        right = f"at most {learned}: the training texts have no more pairs that repeat"
        require(learned == vocab_size, "vocab_size", vocab_size, right)
        return cls(trained)

    @classmethod
    def load(cls, path: Path) -> BPETokenizer:
        """Load what ``save`` wrote.

        Raises:
            ValueError: the file is missing or damaged.
            ImportError: the ``tokenizers`` library is not installed.
        """
        read = library().Tokenizer.from_file
        try:
            return cls(read(str(path)))
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"{path} is damaged ({error}): delete its folder to have it made again") from error

    def save(self, path: Path) -> None:
        """Write the tokenizer as one JSON file, which the ``tokenizers`` library reads too."""
        path.write_text(self._library.to_str(pretty=True), encoding="utf-8")

    @cached_property
    def vocab_size(self) -> int:
        """How many token ids there are, the separator's included."""
        return len(self._vocabulary)

    @cached_property
    def separator(self) -> int:
        """The id of ``<|endoftext|>``."""
        return self._vocabulary[SEPARATOR]

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes that each token stands for, by id; byte 0 for the separator."""
        table = byte_characters()
        spelled = sorted(self._vocabulary, key=self._vocabulary.__getitem__)
        return [b"\0" if one == SEPARATOR else bytes(table[char] for char in one) for one in spelled]

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """Bytes that each token stands for, (vocab_size,); 1 for the separator."""
        return np.array([len(one) for one in self.token_bytes], dtype=np.int64)

    def encode(self, text: str) -> Tokens:
        """Encode text to ids (tokens,), without a separator."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """Encode several texts, each as ``encode`` does, on all processors."""
        dtype = token_dtype(self.vocab_size)
        encoded = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=dtype) for one in encoded]

    def decode(self, ids: npt.ArrayLike) -> str:
        """Decode ids (tokens,); a separator gives a NUL character, bytes that are not UTF-8 give U+FFFD.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        table = self.token_bytes
        return b"".join(table[one] for one in token_ids(ids, self.vocab_size)).decode("utf-8", "replace")
