"""Kinds of tokens, by the text that a token stands for: letters, digits, whitespace, punctuation."""

from __future__ import annotations

import string

import numpy as np
import numpy.typing as npt

from toolkit.data.tokenizer import Tokenizer

CLASSES = ("letter", "digit", "space", "newline", "indent", "punctuation", "separator", "other")
"""See :func:`token_class`."""


def token_class(text: str) -> str:
    """The kind of a token's text, whitespace at its ends left aside unless there is nothing else.

    ``space`` is one space, ``newline`` whitespace with a line's end in it, ``indent`` all other whitespace: a byte
    tokenizer's indentation is therefore of spaces or tabs. ``other`` is mixed, or part of a character.

    >>> [token_class(text) for text in (" def", "42", "\\n    ", "\\t", "):", "é", "x1")]
    ['letter', 'digit', 'newline', 'indent', 'punctuation', 'letter', 'other']
    """
    core = text.strip()
    if not core:
        return "newline" if set(text) & {"\n", "\r"} else "space" if text == " " else "indent"
    if core.isalpha():
        return "letter"
    if core.isdigit():
        return "digit"
    return "punctuation" if all(character in string.punctuation for character in core) else "other"


def token_classes(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """The place in ``CLASSES`` of every id's kind, int64 (vocab_size,)."""
    kinds = [token_class(tokenizer.decode([token])) for token in range(tokenizer.vocab_size)]
    kinds[tokenizer.separator] = "separator"
    return np.array([CLASSES.index(kind) for kind in kinds])


def class_shares(counts: npt.NDArray[np.int64], classes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(experts, len(CLASSES)): what share of each expert's choices each kind of token is; nan for an unchosen expert.

    Args:
        counts: (experts, vocab_size), how often a token of that id chose the expert.
        classes: (vocab_size,), of :func:`token_classes`.
    """
    member = np.eye(len(CLASSES))[classes]
    with np.errstate(invalid="ignore"):
        shares: npt.NDArray[np.float64] = counts @ member / counts.sum(1, keepdims=True)
    return shares


def token_label(text: str) -> str:
    """How a token's text is written on an axis: whitespace and what cannot be printed as Python writes it.

    >>> [token_label(text) for text in ("e", " ", "\\n", " the")]
    ['e', "' '", "'\\\\n'", "' the'"]
    """
    return text if text.isprintable() and text.strip() == text and text else repr(text)
