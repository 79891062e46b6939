"""Helper module beside the tests, and the processor's state as each test found it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "parallel"):
    sys.path.insert(0, str(folder))


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """Training flushes denormal numbers to zero in its whole process; other tests make them on purpose."""
    yield
    torch.set_flush_denormal(False)
