"""Memory in which it shows when a kernel reads what nobody wrote, or writes beside what it was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

GUARD = 64
CANARY = 12345.0


@contextmanager
def guarded() -> Iterator[None]:
    """Floating tensors made inside stand between guard bands; ``torch.empty`` gives nan. The bands must stay as set."""
    made: list[tuple[Tensor, int]] = []

    def make(shape: tuple[Any, ...], fill: float, dtype: torch.dtype | None) -> Tensor:
        size = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        store = torch.Tensor.new_full(torch.ones(()), (size.numel() + 2 * GUARD,), CANARY, dtype=dtype or torch.float32)
        store[GUARD : GUARD + size.numel()] = fill
        made.append((store, size.numel()))
        return store[GUARD : GUARD + size.numel()].view(size)

    with (
        patch("torch.empty", lambda *shape, dtype=None, device=None: make(shape, torch.nan, dtype)),
        patch("torch.zeros", lambda *shape, dtype=None, device=None: make(shape, 0.0, dtype)),
        patch("torch.full", lambda shape, fill, dtype=None, device=None: make((shape,), fill, dtype)),
    ):
        yield
    for store, size in made:
        canary = torch.tensor(CANARY, dtype=store.dtype)
        assert bool((store[:GUARD] == canary).all()) and bool((store[GUARD + size :] == canary).all()), "wrote outside"
