"""Numbers on axes are written short."""

from __future__ import annotations

import pytest

from toolkit.scaling.figures import flops_text


@pytest.mark.parametrize(("value", "text"), [(3e11, "3e11"), (1e9, "1e9"), (1.25e10, "1.25e10"), (120.0, "120")])
def test_flops_are_written_short(value: float, text: str) -> None:
    assert flops_text(value) == text
    assert float(text) == value
