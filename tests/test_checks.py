"""A refused setting is named, its value shown and the right ones said; a good one passes in silence."""

from __future__ import annotations

import pytest

from toolkit.checks import require, require_choice, require_positive


def test_require_passes_in_silence_and_refuses_with_name_value_and_rule() -> None:
    require(True, "top_k", 1, "positive")
    with pytest.raises(ValueError, match=r"^top_k=9: it must be at most 8$"):
        require(False, "top_k", 9, "at most 8")


def test_require_shows_a_string_as_the_user_wrote_it() -> None:
    with pytest.raises(ValueError, match=r"^mode='9': it must be a number$"):
        require(False, "mode", "9", "a number")


@pytest.mark.parametrize("value", [0, -1, -0.5, 0.0])
def test_require_positive_names_the_first_setting_that_is_not(value: float) -> None:
    with pytest.raises(ValueError, match=rf"^heads={value}: it must be positive$"):
        require_positive(dim=1, heads=value, layers=-7)


def test_require_positive_refuses_nan() -> None:
    with pytest.raises(ValueError, match="scale=nan"):
        require_positive(scale=float("nan"))


def test_require_positive_passes_whatever_is_above_zero() -> None:
    require_positive(dim=1, base=1e-9)


def test_require_choice_lists_the_choices() -> None:
    require_choice("over", "batch", ("global", "batch"))
    with pytest.raises(ValueError, match=r"^over='rank': it must be one of 'global', 'batch'$"):
        require_choice("over", "rank", ("global", "batch"))
