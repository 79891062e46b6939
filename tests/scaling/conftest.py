"""The tests of scaling import the modules beside them, and leave their process as it was."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Training flushes denormals to zero and sets threads for its whole process."""
    environment = dict(os.environ)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
