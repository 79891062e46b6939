"""The benchmark of tiles prints a table that agrees with itself and with the masks."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "benchmarks" / "tile_efficiency.py"


@pytest.fixture(scope="module")
def table() -> dict[str, tuple[float, ...]]:
    """Name -> density, visited, efficiency, full, passes, mask only, at 1024 tokens and tiles of 32 x 16."""
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), "--length=1024", "--block-m=32", "--block-n=16", "--long=8192"])
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *words: lines.append(" ".join(map(str, words))))
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert re.search(r"at 8192 tokens: \d+\.\d\d s, \d+\.\d MB kept", lines[-1])
    rows = {line[:42].strip(): line[42:].split() for line in lines[2:-1]}
    assert {row[2] for row in rows.values()} == {"-"}, "limits are stated for 8192 tokens only"
    return {name: tuple(float(row[n]) for n in (0, 1, 3, 4, 5, 6)) for name, row in rows.items()}


def test_every_row_agrees_with_itself(table: dict[str, tuple[float, ...]]) -> None:
    assert len(table) >= 19
    for name, (density, visited, efficiency, full, passes, by_mask) in table.items():
        assert 0 < density <= 100 and 0 < visited <= 100 and 0 <= full <= 1 and passes >= 1, name
        assert efficiency == pytest.approx(density / visited, abs=2e-3), name
        assert by_mask >= density - 0.01, name


def test_what_is_computed_in_plain_order_visits_what_the_mask_says(table: dict[str, tuple[float, ...]]) -> None:
    for name in ("full", "causal", "window 512 + 4 sinks", "chunked 512", "packed documents", "all but a window"):
        assert table[name][1] == table[name][5], name


def test_known_densities(table: dict[str, tuple[float, ...]]) -> None:
    n, w = 1024, 512
    assert table["full"][:2] == (100, 100)
    assert table["causal"][0] == pytest.approx(100 * (n + 1) / (2 * n), abs=0.01)
    assert table["window 512"][0] == pytest.approx(100 * (w * n - w * (w - 1) / 2) / n**2, abs=0.01)
    assert table["strided 128"][1] < table["strided 128"][5], "a mask-only design visits more"
