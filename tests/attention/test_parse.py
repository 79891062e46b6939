"""Text to pattern and back; nothing is evaluated, and what is not understood is named."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from pattern_cases import BATCH, CASES, HEADS, STATIC, Case, Place

from toolkit.attention import parse_pattern, patterns, register_pattern
from toolkit.attention.parse import NAMES, encode
from toolkit.attention.patterns import (
    BlockMask,
    Causal,
    Documents,
    Fixed,
    Full,
    GlobalTokens,
    KeyRanges,
    Pattern,
    PerDocument,
    PerHead,
    RandomBlocks,
    Sinks,
    SlidingWindow,
    Strided,
    Window,
)


@settings(max_examples=120)
@given(STATIC)
def test_parsing_inverts_printing(case: Case) -> None:
    assert parse_pattern(str(case.pattern)) == case.pattern
    assert encode(case.pattern) == (str(case.pattern), [])


@settings(max_examples=80)
@given(CASES)
def test_parsing_inverts_encoding_with_tensors_beside_the_text(case: Case) -> None:
    text, tensors = encode(case.pattern)
    again = parse_pattern(text, tensors)
    assert encode(again)[0] == text
    place = Place(9, 14, None, 0)
    place.fits(case.pattern)
    theirs, ours = (one.mask(*place.args).expand(BATCH, HEADS, 9, 14) for one in (again, case.pattern))
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("Full()", Full()),
        ("SlidingWindow(512)", SlidingWindow(512)),
        ("SlidingWindow(width=512)", SlidingWindow(512)),
        ("Window(3, right=-1)", Window(3, -1)),
        ("Causal()&SlidingWindow(4)", Causal() & SlidingWindow(4)),
        ("Causal() & (SlidingWindow(4) | Sinks(2))", Causal() & (SlidingWindow(4) | Sinks(2))),
        ("Causal() & SlidingWindow(4) | Sinks(2)", (Causal() & SlidingWindow(4)) | Sinks(2)),
        ("~Causal() & ~(Sinks(1) | Strided(3))", ~Causal() & ~(Sinks(1) | Strided(3))),
        ("~~Causal()", Causal()),
        ("GlobalTokens(positions=[3, 1])", GlobalTokens(positions=[1, 3])),
        ("RandomBlocks(3, 64, 0, causal=True)", RandomBlocks(3, 64, 0, causal=True)),
        ("PerHead([Causal(), Causal() & Fixed(4, 1)])", PerHead([Causal(), Causal() & Fixed(4, 1)])),
        ("\n  Causal()".strip(), Causal()),
    ],
)
def test_text_means_what_python_means(text: str, pattern: Pattern) -> None:
    assert parse_pattern(text) == pattern


def test_a_tensor_is_written_once_and_comes_back_as_it_is() -> None:
    ids, blocks = torch.tensor([[0, 0, 1]]), torch.ones(1, 1, dtype=torch.bool)
    text, tensors = encode(PerDocument(ids, Causal()) | Documents(ids) & BlockMask(blocks, 4))
    assert text == "PerDocument(tensor(0), Causal()) | Documents(ids=tensor(0)) & BlockMask(blocks=tensor(1), block=4)"
    assert tensors[0] is ids and tensors[1] is blocks
    parsed = parse_pattern("KeyRanges(tensor(0), tensor(0))", [ids[0]])
    assert isinstance(parsed, KeyRanges) and parsed.first.data_ptr() == ids.data_ptr()


def test_every_public_pattern_can_be_written() -> None:
    from toolkit.attention.parse import NAMES

    combinations = {"And", "Or", "Not", "Pattern", "query_positions"}
    assert set(NAMES) == set(patterns.__all__) - combinations


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Causal(",
        "Causal",
        "3",
        "[Causal()]",
        "Causal() ^ Full()",
        "Causal() and Full()",
        "not Causal()",
        "Causal() & 3",
        "Causal() | None",
        "~3",
        "-Causal()",
        "Diagonal()",
        "Pattern()",
        "And((Causal(), Full()))",
        "query_positions()",
        "__import__('os').getcwd()",
        "SlidingWindow(print(3))",
        "SlidingWindow(2 ** 9)",
        "SlidingWindow(x)",
        "SlidingWindow()",
        "SlidingWindow(1, 2)",
        "SlidingWindow(size=3)",
        "SlidingWindow(*[3])",
        "SlidingWindow(**{'width': 3})",
        "PerHead([Causal(), [x for x in y]])",
        "Causal(); Full()",
        "toolkit.attention.Causal()",
        "Documents(tensor(0))",
        "tensor(0)",
        "tensor(-1)",
    ],
)
def test_what_is_not_understood_is_refused_with_the_text_and_the_known_names(text: str) -> None:
    with pytest.raises(ValueError, match="pattern=") as refused:
        parse_pattern(text)
    assert repr(text) in str(refused.value)
    for name in ("Full", "Causal", "Window", "SlidingWindow"):
        assert name in str(refused.value)


@pytest.mark.parametrize(
    ("text", "tensors", "named"),
    [
        ("Causal() & Diagonal(3)", [], "nothing is called Diagonal"),
        ("Documents(tensor(0))", [], r"no tensor\(0\): text alone, as in a config file, holds no tensor"),
        ("Documents(tensor(1))", [torch.zeros(1)], r"no tensor\(1\): only 1 were given"),
        ("tensor(0)", [torch.zeros(1)], "it is no pattern"),
    ],
)
def test_what_is_wrong_is_said(text: str, tensors: list[torch.Tensor], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_pattern(text, tensors)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("SlidingWindow(0)", "width=0"),
        ("SlidingWindow(2.5)", "width=2.5"),
        ("SlidingWindow('wide')", "width='wide'"),
        ("SlidingWindow(Causal())", r"width=Causal\(\)"),
        ("GlobalTokens()", "exactly one"),
        ("PerHead([Causal(), 3])", "patterns="),
        ("PerHead([])", "patterns="),
        ("Documents(3)", "ids=3"),
        ("BlockMask([[True]], 4)", "blocks="),
        ("PerDocument([0, 0], Causal())", "ids="),
    ],
)
def test_a_bad_setting_inside_is_named(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_pattern(f"Causal() & {text}")


def test_a_pattern_of_one_s_own_is_known_by_its_name_once_registered() -> None:
    @dataclass(frozen=True)
    class Evens(Causal):
        pass

    with pytest.raises(ValueError, match="Evens"):
        parse_pattern("Evens() & SlidingWindow(2)")
    try:
        assert register_pattern(Evens) is Evens
        assert register_pattern(Evens) is Evens  # its own name again
        assert parse_pattern("Evens() & SlidingWindow(2)") == Evens() & SlidingWindow(2)
    finally:
        NAMES.pop("Evens", None)


@pytest.mark.parametrize("name", ["Causal", "KeysAt"])
def test_a_registered_pattern_has_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match=f"kind='{name}': it must be a name of its own"):
        register_pattern(type(name, (Causal,), {}))


def test_only_classes_of_patterns_are_registered() -> None:
    with pytest.raises(ValueError, match="kind=.*: it must be a class that derives from Pattern"):
        register_pattern(int)  # type: ignore[type-var]
