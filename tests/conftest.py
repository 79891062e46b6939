"""Settings of every test: one thread (the machine is shared), a fixed seed, no deadline for an example."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("toolkit", deadline=None)
settings.load_profile("toolkit")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
