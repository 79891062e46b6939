"""Torch's fused attention is taken where it says the same as the blocks, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.attention import (
    Causal,
    DilatedWindow,
    Documents,
    Full,
    Pattern,
    PerHead,
    Sinks,
    SlidingWindow,
    Window,
    attention,
)
from toolkit.attention import blockwise as both
from toolkit.attention.blockwise import fused
from toolkit.attention.blockwise.backward import backward
from toolkit.attention.blockwise.forward import forward
from toolkit.attention.plan import plan
from toolkit.attention.scoring import Scoring


def draw(q_len: int, kv_len: int, kv_heads: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """q (2, 4, q_len, 8), k, v (2, kv_heads, kv_len, 8), d_out and d_lse."""
    shapes = (2, 4, q_len, 8), (2, kv_heads, kv_len, 8), (2, kv_heads, kv_len, 8), (2, 4, q_len, 8)
    return *(torch.randn(shape).to(dtype) for shape in shapes), torch.randn(2, 4, q_len)


TAKEN: list[tuple[Pattern, int, int]] = [
    (Full(), 30, 300),
    (Full(), 300, 30),
    (Causal(), 300, 300),
    (Causal(), 40, 60),
    (Causal() & SlidingWindow(9), 60, 60),
    (Causal() & (SlidingWindow(9) | Sinks(2)), 60, 60),
    (SlidingWindow(20), 200, 200),
]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("pattern", "q_len", "kv_len"), TAKEN, ids=str)
def test_it_agrees_with_the_blocks(pattern: Pattern, q_len: int, kv_len: int, kv_heads: int) -> None:
    q, k, v, d_out, _ = draw(q_len, kv_len, kv_heads)
    passes, scoring = plan(pattern, q_len, kv_len), Scoring(0.4)
    how = fused.fused(q, v, passes, scoring)
    assert how is not None
    out, lse = fused.forward(q, k, v, how, scoring)
    expected = forward(q, k, v, passes, scoring, kv_len - q_len, 0)
    assert (out.dtype, lse.dtype, out.shape, lse.shape) == (q.dtype, torch.float32, q.shape, q.shape[:3])
    torch.testing.assert_close((out, lse), expected, rtol=0, atol=1e-5)
    grads = fused.backward(d_out, q, k, v, out, lse, how, scoring)
    blocks = backward(d_out, torch.zeros_like(lse), q, k, v, out, lse, passes, scoring, kv_len - q_len, 0)
    torch.testing.assert_close(grads, blocks[:3], rtol=0, atol=2e-5)


def test_a_gradient_of_the_lse_goes_through_the_blocks() -> None:
    q, k, v, d_out, d_lse = draw(50, 50)
    passes, scoring = plan(Causal(), 50, 50), Scoring(0.4)
    out, lse = both.forward(q, k, v, passes, scoring, 0, 0)
    found = both.backward(d_out, d_lse, q, k, v, out, lse, passes, scoring, 0, 0)
    expected = backward(d_out, d_lse, q, k, v, out, lse, passes, scoring, 0, 0)
    torch.testing.assert_close(found[:3], expected[:3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("pattern", "q_len", "kv_len"), TAKEN, ids=str)
def test_it_is_as_accurate_as_the_textbook(pattern: Pattern, q_len: int, kv_len: int, dtype: torch.dtype) -> None:
    *tensors, d_out, _ = draw(q_len, kv_len, dtype=dtype)
    found: dict[str, list[Tensor]] = {}
    for name, compute in (("exact", torch.float64), ("textbook", dtype), ("ours", dtype)):
        q, k, v = (x.to(compute).requires_grad_() for x in tensors)
        if name == "ours":
            out = attention(q, k, v, pattern)
        else:
            hidden = ~pattern.mask(q_len, kv_len, None if q_len <= kv_len else 0)
            out = torch.softmax((q @ k.mT * 8**-0.5).masked_fill(hidden, -torch.inf), dim=-1) @ v
        found[name] = [out, *torch.autograd.grad(out, (q, k, v), d_out.to(compute))]
    for exact, textbook, ours in zip(*found.values(), strict=True):
        error, bound = ((x.double() - exact).abs().max() for x in (ours, textbook))
        assert error <= 2 * bound + 4 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize(
    ("pattern", "settings"),
    [
        (Causal(), {"softcap": 2.0}),
        (Causal(), {"alibi_slopes": torch.ones(4)}),
        (Causal(), {"sink_logits": torch.ones(4)}),
        (Causal(), {"dropout_p": 0.1, "seed": torch.tensor([1])}),
        (Causal() & SlidingWindow(60), {}),  # long enough for blocks to skip something
        (Causal() & DilatedWindow(4, 2), {}),
        (Causal() & Documents(torch.zeros(2, 300, dtype=torch.int64)), {}),
        (PerHead([Causal(), Full(), Causal(), Full()]), {}),
    ],
    ids=str,
)
def test_it_is_left_alone_where_it_says_less(pattern: Pattern, settings: dict[str, Any]) -> None:
    q, _, v, *_ = draw(300, 300)
    assert fused.fused(q, v, plan(pattern, 300, 300), Scoring(0.4, **settings)) is None


@pytest.mark.parametrize("which", ["q", "k", "v", "all"])
@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
@pytest.mark.parametrize("pattern", [Full(), Causal(), Causal() & SlidingWindow(9)], ids=str)
def test_any_layout_of_the_inputs_will_do(pattern: Pattern, layout: str, which: str) -> None:
    made = {
        "transposed": lambda x: x.mT.contiguous().mT,
        "strided": lambda x: torch.stack([x, x + 1], dim=-1).flatten(-2)[..., ::2],
        "expanded": lambda x: x[..., :1].expand(x.shape),
    }[layout]
    tensors = [made(x) if which in (name, "all") else x for name, x in zip("qkv", draw(40, 40)[:3], strict=True)]
    found = []
    for backend in ("blockwise", "reference"):
        inputs = [x.detach().requires_grad_() for x in tensors]
        out = attention(*inputs, pattern, backend=backend)
        found.append((out, *torch.autograd.grad(out.sin().sum(), inputs)))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_a_scale_that_is_not_positive_is_left_to_the_blocks(scale: float) -> None:
    q, k, v, *_ = draw(20, 20)
    expected = attention(q, k, v, scale=scale, backend="reference")
    torch.testing.assert_close(attention(q, k, v, scale=scale), expected, rtol=0, atol=1e-5)


def test_it_is_left_alone_over_rows_and_columns_that_nobody_meets() -> None:
    q, _, v, *_ = draw(20, 20)
    assert fused.fused(q, v, plan(Causal() & Window(-1, -1), 20, 20), Scoring(0.4)) is not None
    assert (
        fused.fused(q, v, plan(Window(9, -1) & ~Window(-1, 2), 20, 20), Scoring(0.4)) is None
    )  # the last rows are empty
    assert fused.fused(q, v, plan(Sinks(3), 20, 20), Scoring(0.4)) is None  # columns 3 and on may hold nan
    assert fused.fused(q, v[..., :5], plan(Causal(), 20, 20), Scoring(0.4)) is None
    assert fused.fused(q.double(), v.double(), plan(Causal(), 20, 20), Scoring(0.4)) is None
