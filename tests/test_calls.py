"""Texts that call known names: what they make, what is filled in, what is refused and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from toolkit.calls import Calls


@dataclass(frozen=True)
class Part:
    size: int
    more: Any = None


@dataclass(frozen=True)
class Whole:
    size: int
    parts: Any = ()

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size={self.size}: it must be 0 or more")


CALLS = Calls("thing", {"Part": Part, "Whole": Whole}, (Whole,), {"size": 7})


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("Whole(3)", Whole(3)),
        ("Whole()", Whole(7)),
        ("Whole(size=1, parts=[Part(), Part(2, more=(1, 'a'))])", Whole(1, [Part(7), Part(2, (1, "a"))])),
        ("Whole(-0, (Part(1), None))", Whole(0, (Part(1), None))),
    ],
)
def test_a_text_is_the_call_it_writes(text: str, made: Whole) -> None:
    assert CALLS.read(text) == made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Hole()", "nothing is called Hole; known are Part, Whole; it must be one of Whole, called with its arguments"),
        ("Part()", "it is no thing"),
        ("3", "it is no thing"),
        ("Whole(x)", "x is neither a literal nor a call"),
        ("Whole(1 + 1)", "1 \\+ 1 is neither"),
        ("Whole(*[1])", "must stand one by one"),
        ("Whole(**{'size': 1})", "must stand one by one"),
        ("Whole(1, 2, 3)", "Whole\\(size, parts\\): "),
        ("Whole(length=1)", "length"),
        ("Whole(", "thing='Whole\\('"),
        ("Whole(size='1')", "Whole\\(size, parts\\): "),
        ("Whole(-1)", "thing='Whole\\(-1\\)': size=-1: it must be 0 or more"),
        ("__import__('os').system('true')", "is neither a literal nor a call"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CALLS.read(text)
