"""What a tokenizer is here, and the simplest one: a token for each byte.

The corpus is one stream of bytes, each document's UTF-8 followed by one byte 0. A tokenizer cuts that
stream into tokens. Every byte is in exactly one token, so bits per byte,
``sum of NLL in nats / ln 2 / sum of byte_lengths``, compare between tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from toolkit.checks import require

Tokens = npt.NDArray[np.unsignedinteger[Any]]


class Tokenizer(Protocol):
    """A reversible map between text and token ids 0..vocab_size-1, with one id that ends a document."""

    @property
    def vocab_size(self) -> int:
        """How many token ids there are, the separator's included."""
        ...

    @property
    def separator(self) -> int:
        """The id that follows each document; no text is encoded to it."""
        ...

    @property
    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """Bytes that each token stands for, (vocab_size,); 1 for the separator, whose byte is 0."""
        ...

    def encode(self, text: str) -> Tokens:
        """Encode text, without a separator, to ids (tokens,) of ``token_dtype(vocab_size)``."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """Encode several texts, each as ``encode`` does."""
        ...

    def decode(self, ids: npt.ArrayLike) -> str:
        """Decode ids (tokens,); a separator gives a NUL character, bytes that are not UTF-8 give U+FFFD."""
        ...


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Give the smallest unsigned integer type that holds the ids 0..vocab_size-1: 8, 16 or 32 bits.

    >>> token_dtype(256), token_dtype(257)
    (dtype('uint8'), dtype('uint16'))
    """
    return np.dtype(np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.uint32)


def token_ids(ids: npt.ArrayLike, vocab_size: int) -> list[int]:
    """Give ids (tokens,) as a list of int.

    Raises:
        ValueError: an id is outside 0..vocab_size-1, or ``ids`` is not a sequence of integers.
    """
    array = np.asarray(ids)
    if array.size == 0:
        return []
    right = "a sequence of integers"
    require(array.ndim == 1 and array.dtype.kind in "iu", "ids", f"{array.dtype} {array.shape}", right)
    for extreme in (int(array.min()), int(array.max())):
        require(0 <= extreme < vocab_size, "ids", extreme, f"between 0 and vocab_size - 1 = {vocab_size - 1}")
    return [int(one) for one in array.tolist()]


class ByteTokenizer:
    """A token for each byte of the UTF-8 text; byte 0 separates documents.

    >>> ByteTokenizer().encode("é!")
    array([195, 169,  33], dtype=uint8)
    """

    vocab_size = 256
    separator = 0

    @property
    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """Bytes that each token stands for, (256,): 1 each."""
        return np.ones(self.vocab_size, dtype=np.int64)

    def encode(self, text: str) -> Tokens:
        """Encode text to its UTF-8 bytes, uint8 (bytes,).

        Raises:
            ValueError: the text holds a NUL character, which would read as the end of a document.
        """
        require("\0" not in text, "text", f"{text[:20]}...", "free of NUL: byte 0 separates documents")
        return np.frombuffer(text.encode(), dtype=np.uint8)

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """Encode several texts, each as ``encode`` does."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: npt.ArrayLike) -> str:
        """Decode ids (bytes,); what is not UTF-8 becomes U+FFFD.

        Raises:
            ValueError: an id is not a byte.
        """
        return bytes(token_ids(ids, self.vocab_size)).decode("utf-8", "replace")
