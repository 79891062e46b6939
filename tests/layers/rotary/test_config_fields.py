"""A config's fields, the same from an object and from a dict."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from toolkit.layers.rotary.config_fields import as_float, field, required

FIELDS = {"head_dim": 64, "rope_theta": None, "zero": 0}


@pytest.mark.parametrize("config", [FIELDS, SimpleNamespace(**FIELDS)], ids=["dict", "object"])
def test_the_first_field_that_holds_something_is_taken(config: Any) -> None:
    assert field(config, "head_dim") == required(config, "head_dim") == 64
    assert field(config, "absent", "rope_theta", "head_dim") == 64
    assert field(config, "zero", "head_dim") == required(config, "zero") == 0
    assert field(config, "absent", "rope_theta") is None
    assert field(config, "rope_theta", default=3) == 3
    for name in ("rope_theta", "absent"):
        with pytest.raises(ValueError, match=f"{name}=None: it must be given"):
            required(config, name)


@pytest.mark.parametrize("value", ["4", None, True, 0, 10**400, float("inf"), float("nan")])
def test_what_is_no_number_is_named(value: Any) -> None:
    assert as_float("factor", 4) == 4.0
    with pytest.raises(ValueError, match=r"factor=.*: it must be a number other than 0"):
        as_float("factor", value)
