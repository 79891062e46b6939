"""Fields of a Hugging Face config, be it an object or ``config.json`` as a dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.checks import require


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
