"""Text to pattern and back; nothing is evaluated, and what is not understood is named."""

from __future__ import annotations

import pytest
import torch
from attention_cases import CASES, Case
from hypothesis import given

from toolkit.attention import Causal, Full, SlidingWindow, Window, parse_pattern


@given(CASES)
def test_parsing_inverts_printing(case: Case) -> None:
    pattern, _ = case
    again = parse_pattern(str(pattern))
    assert str(again) == str(pattern)
    assert torch.equal(again.mask(9, 12), pattern.mask(9, 12))


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("Full()", Full()),
        ("Causal()", Causal()),
        ("SlidingWindow(512)", SlidingWindow(512)),
        ("SlidingWindow(width=512)", SlidingWindow(512)),
        ("Window(3, right=-1)", Window(3, -1)),
        ("Causal()&SlidingWindow(4)", Causal() & SlidingWindow(4)),
        ("Causal() & SlidingWindow(4) & Full()", Causal() & SlidingWindow(4) & Full()),
        ("Causal() & (SlidingWindow(4) & Full())", Causal() & (SlidingWindow(4) & Full())),
    ],
)
def test_text_means_what_python_means(text: str, pattern: object) -> None:
    assert parse_pattern(text) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Causal(",
        "Causal",
        "3",
        "Causal() | Full()",
        "Causal() and Full()",
        "Causal() & 3",
        "Diagonal()",
        "__import__('os').getcwd()",
        "SlidingWindow(print(3))",
        "SlidingWindow(2 ** 9)",
        "SlidingWindow()",
        "SlidingWindow(1, 2)",
        "SlidingWindow(size=3)",
        "SlidingWindow(*[3])",
        "SlidingWindow(**{'width': 3})",
        "Causal(); Full()",
        "toolkit.attention.Causal()",
    ],
)
def test_what_is_not_understood_is_refused_with_the_text_and_the_known_names(text: str) -> None:
    with pytest.raises(ValueError, match="pattern=") as refused:
        parse_pattern(text)
    assert repr(text) in str(refused.value)
    for name in ("Full", "Causal", "Window", "SlidingWindow"):
        assert name in str(refused.value)


def test_an_unknown_name_is_the_one_shown() -> None:
    with pytest.raises(ValueError, match="no pattern is called Diagonal"):
        parse_pattern("Causal() & Diagonal(3)")


def test_a_bad_setting_inside_is_named() -> None:
    for text, named in (("0", "width=0"), ("2.5", "width=2.5"), ("'wide'", "width='wide'")):
        with pytest.raises(ValueError, match=named):
            parse_pattern(f"Causal() & SlidingWindow({text})")
