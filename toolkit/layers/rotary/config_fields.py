"""Fields of a Hugging Face config, be it an object or ``config.json`` as a dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.checks import require
from toolkit.layers.rotary.scaling.interface import LARGEST, is_number


def field(config: Any, *names: str, default: Any = None) -> Any:
    """The first of several fields that is there; one that holds None counts as missing."""
    for name in names:
        value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
        if value is not None:
            return value
    return default


def required(config: Any, name: str, right: str = "given for this rope_type") -> Any:
    """A field that must be there.

    Raises:
        ValueError: naming the field if it is missing.
    """
    value = field(config, name)
    require(value is not None, name, value, right)
    return value


def as_float(name: str, value: Any) -> float:
    """A field's number.

    Raises:
        ValueError: naming the field if it is none, or out of all range.
    """
    require(is_number(value) and value != 0, name, value, f"a number other than 0, of at most {LARGEST:g}")
    return float(value)
