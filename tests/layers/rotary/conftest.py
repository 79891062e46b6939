"""The tests of the rotation import the modules beside them, and share one interpreting process per worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[2]))

from interpreted_process import Interpreter


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    """Runs a check of ``rotary_kernel_checks`` where Triton interprets."""
    process = Interpreter(Path(__file__).parent, "rotary_kernel_checks")
    yield process
    process.close()
