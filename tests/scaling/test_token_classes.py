"""Kinds of tokens cover every id once, and shares are of each expert's choices."""

from __future__ import annotations

import string

import numpy as np

from toolkit.data import ByteTokenizer
from toolkit.scaling.token_classes import CLASSES, class_shares, token_class, token_classes, token_label


def test_bytes() -> None:
    kinds = [CLASSES[kind] for kind in token_classes(ByteTokenizer())]
    assert kinds[0] == "separator"
    by_kind = {kind: {chr(at) for at, one in enumerate(kinds) if one == kind} for kind in CLASSES}
    assert by_kind["letter"] == set(string.ascii_letters)
    assert by_kind["digit"] == set(string.digits)
    assert by_kind["punctuation"] == set(string.punctuation)
    assert by_kind["space"] == {" "}
    assert by_kind["newline"] == {"\n", "\r"}
    assert "\t" in by_kind["indent"]
    assert all(kinds[byte] == "other" for byte in range(128, 256))  # parts of characters


def test_tokens_of_several_characters() -> None:
    assert token_class("\n        ") == "newline"
    assert token_class("    ") == "indent"
    assert token_class("self.") == "other"


def test_shares_are_of_each_experts_choices() -> None:
    classes = np.array([CLASSES.index(kind) for kind in ("letter", "letter", "digit")])
    shares = class_shares(np.array([[1, 2, 1], [0, 0, 5], [0, 0, 0]]), classes)
    assert shares[0, CLASSES.index("letter")] == 0.75
    assert shares[0, CLASSES.index("digit")] == 0.25
    assert shares[1, CLASSES.index("digit")] == 1
    assert np.isnan(shares[2]).all()
    np.testing.assert_allclose(shares[:2].sum(1), 1)


def test_labels_tell_all_bytes_apart() -> None:
    labels = [token_label(chr(code)) for code in range(128)]
    assert len(set(labels)) == 128
    assert all(label.isprintable() and label.strip() for label in labels)
