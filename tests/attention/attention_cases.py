"""Patterns with their predicates in plain Python, and tensors to attend with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from toolkit.attention import Causal, Full, Pattern, SlidingWindow, Window

Predicate = Callable[[int, int], bool]
Case = tuple[Pattern, Predicate]


def _window(left: int, right: int) -> Case:
    return Window(left, right), lambda i, j: (left < 0 or i - j <= left) and (right < 0 or j - i <= right)


def _sliding(width: int) -> Case:
    return SlidingWindow(width), lambda i, j: -width < i - j < width


def _both(first: Case, second: Case) -> Case:
    return first[0] & second[0], lambda i, j: first[1](i, j) and second[1](i, j)


ATOMS: st.SearchStrategy[Case] = st.one_of(
    st.just((Full(), lambda i, j: True)),
    st.just((Causal(), lambda i, j: j <= i)),
    st.builds(_window, st.integers(-1, 9), st.integers(-1, 9)),
    st.builds(_sliding, st.integers(1, 9)),
)
CASES: st.SearchStrategy[Case] = st.recursive(ATOMS, lambda inner: st.builds(_both, inner, inner), max_leaves=3)


@dataclass(frozen=True)
class Grid:
    """Where queries and keys stand."""

    q_len: int
    kv_len: int
    q_start: int
    kv_start: int


GRIDS = st.builds(Grid, st.integers(1, 24), st.integers(1, 24), st.integers(0, 30), st.integers(0, 30))


def brute_force(predicate: Predicate, grid: Grid) -> Tensor:
    """The mask, pair by pair, in Python."""
    return torch.tensor(
        [
            [predicate(grid.q_start + row, grid.kv_start + column) for column in range(grid.kv_len)]
            for row in range(grid.q_len)
        ]
    )


def draw(
    q_len: int,
    kv_len: int,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 8,
    value_dim: int | None = None,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normal q, k, v that want their gradient."""
    sizes = (
        (batch, heads, q_len, head_dim),
        (batch, kv_heads, kv_len, head_dim),
        (batch, kv_heads, kv_len, value_dim or head_dim),
    )
    q, k, v = (torch.randn(size, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes)
    return q, k, v
