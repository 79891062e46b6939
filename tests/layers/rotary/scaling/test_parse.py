"""Text to scaling and back; nothing is evaluated, and what is not understood is named."""

from __future__ import annotations

import pytest

from toolkit.layers import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NTKScaling,
    ProportionalScaling,
    YaRNScaling,
    parse_scaling,
)
from toolkit.layers.rotary import scaling as scalings
from toolkit.layers.rotary.scaling import RotaryScaling
from toolkit.layers.rotary.scaling.parse import NAMES


@pytest.mark.parametrize(
    ("scaling", "text"),
    [
        (LinearScaling(2), "LinearScaling(factor=2)"),
        (NTKScaling(2.5), "NTKScaling(factor=2.5)"),
        (DynamicNTKScaling(2, 16), "DynamicNTKScaling(factor=2, original_length=16)"),
        (YaRNScaling(4, 256), "YaRNScaling(factor=4, original_length=256)"),
        (YaRNScaling(4, 256, 32, 1, False), "YaRNScaling(factor=4, original_length=256, truncate=False)"),
        (YaRNScaling(4, 8, mscale=1.0), "YaRNScaling(factor=4, original_length=8, mscale=1.0)"),
        (
            LongRoPEScaling([1, 2.5], [3, 4], 16, 4),
            "LongRoPEScaling(short_factors=(1, 2.5), long_factors=(3, 4), original_length=16, factor=4)",
        ),
        (Llama3Scaling(8, 64), "Llama3Scaling(factor=8, original_length=64)"),
        (ProportionalScaling(0.25), "ProportionalScaling(fraction=0.25)"),
    ],
)
def test_parsing_inverts_printing(scaling: RotaryScaling, text: str) -> None:
    assert str(scaling) == repr(scaling) == text
    assert parse_scaling(text) == scaling


@pytest.mark.parametrize(
    ("text", "scaling"),
    [
        ("LinearScaling(2)", LinearScaling(2)),
        (" YaRNScaling(4.0, original_length=256)".strip(), YaRNScaling(4, 256)),
        ("LongRoPEScaling([1], [2], 16, 4)", LongRoPEScaling([1], [2], 16, 4)),
    ],
)
def test_text_means_what_python_means(text: str, scaling: RotaryScaling) -> None:
    assert parse_scaling(text) == scaling


def test_every_public_scaling_can_be_written() -> None:
    assert {name for name in scalings.__all__ if name.endswith("Scaling")} - {"RotaryScaling"} == set(NAMES)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "LinearScaling(",
        "LinearScaling",
        "3",
        "None",
        "[LinearScaling(2)]",
        "RotaryScaling()",
        "Diagonal(2)",
        "LinearScaling()",
        "LinearScaling(2, 3)",
        "LinearScaling(size=3)",
        "LinearScaling(*[3])",
        "LinearScaling(**{'factor': 3})",
        "LinearScaling(2 ** 9)",
        "LinearScaling(x)",
        "LinearScaling(print(3))",
        "__import__('os').getcwd()",
        "toolkit.layers.LinearScaling(2)",
        "LinearScaling(2); LinearScaling(3)",
    ],
)
def test_what_is_not_understood_is_refused_with_the_text_and_the_known_names(text: str) -> None:
    with pytest.raises(ValueError, match="scaling=") as refused:
        parse_scaling(text)
    assert repr(text) in str(refused.value)
    for name in NAMES:
        assert name in str(refused.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("LinearScaling(0.5)", "factor=0.5"),
        ("LinearScaling('two')", "factor='two'"),
        ("YaRNScaling(4, 0)", "original_length=0"),
        ("LongRoPEScaling(1, [2], 16, 4)", "short_factors=1"),
    ],
)
def test_a_field_that_is_refused_is_named_and_so_is_the_text(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named) as refused:
        parse_scaling(text)
    assert repr(text) in str(refused.value)
