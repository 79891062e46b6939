"""The blockwise path is the textbook, in value and gradient, and its memory is linear."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from attention_cases import CASES, GRIDS, Case, Grid, draw
from hypothesis import given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from toolkit.attention import Causal, Full, Pattern, SlidingWindow, Window
from toolkit.attention.blockwise import blockwise_attention
from toolkit.attention.reference import reference_attention
from toolkit.attention.schedule import BLOCK

Results = tuple[Tensor, ...]
Triple = tuple[Tensor, Tensor, Tensor]
PATTERNS = [
    Full(),
    Causal(),
    SlidingWindow(5),
    Causal() & SlidingWindow(130),
    Causal() & SlidingWindow(1),
    Window(-1, 140),
    Window(200, 3) & SlidingWindow(150),
]


def run(attend: Any, tensors: Triple, d_out: Tensor, d_lse: Tensor, *rest: Any) -> Results:
    """out, lse, dq, dk, dv."""
    out, lse = attend(*tensors, *rest)
    gradients = torch.autograd.grad((out, lse), tensors, (d_out.to(out.dtype), d_lse.to(lse.dtype)))
    return out.detach(), lse.detach(), *gradients


def assert_same(tensors: Triple, *rest: Any) -> None:
    q, _, v = tensors
    d_out = torch.randn(*q.shape[:3], v.shape[-1], dtype=torch.float64)
    d_lse = torch.randn(q.shape[:3], dtype=torch.float64)
    ours = run(blockwise_attention, tensors, d_out, d_lse, *rest)
    textbook = run(reference_attention, tensors, d_out, d_lse, *rest)
    for name, mine, expected in zip(("out", "lse", "dq", "dk", "dv"), ours, textbook, strict=True):
        assert mine.dtype == expected.dtype
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (127, 127), (128, 128), (129, 129), (257, 300), (1, 260)])
def test_value_and_all_gradients_are_the_textbooks_in_fp64(pattern: Pattern, q_len: int, kv_len: int) -> None:
    assert_same(draw(q_len, kv_len, batch=1, heads=4, kv_heads=2, head_dim=8, value_dim=5), pattern, 0.35)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (4, 1), (6, 2)])
def test_grouped_queries(heads: int, kv_heads: int) -> None:
    assert_same(draw(140, 140, heads=heads, kv_heads=kv_heads, head_dim=3), Causal() & SlidingWindow(20), 0.5)


@settings(max_examples=60)
@given(CASES, GRIDS)
def test_any_pattern_anywhere_empty_rows_included(case: Case, grid: Grid) -> None:
    tensors = draw(grid.q_len, grid.kv_len, batch=1, heads=2, kv_heads=1, head_dim=3)
    assert_same(tensors, case[0], 0.5, grid.q_start, grid.kv_start)


@pytest.mark.parametrize("kv_start", [40, 128, 200, 900])
def test_empty_rows_across_blocks_are_zeros_minus_infinity_with_zero_gradients(kv_start: int) -> None:
    tensors = q, k, v = draw(300, 300, batch=1)
    assert_same(tensors, Causal(), 0.5, 0, kv_start)
    out, lse = blockwise_attention(q, k, v, Causal(), 0.5, 0, kv_start)
    empty = min(kv_start, 300)
    assert (out[:, :, :empty] == 0).all()
    assert (lse[:, :, :empty] == -torch.inf).all()
    assert torch.isfinite(lse[:, :, empty:]).all()
    dq, dk, dv = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), torch.ones_like(lse)))
    assert (dq[:, :, :empty] == 0).all()
    assert all(torch.isfinite(gradient).all() for gradient in (dq, dk, dv))
    seen = max(0, 300 - kv_start)
    assert (dk[:, :, seen:] == 0).all()
    assert (dv[:, :, seen:] == 0).all()
    assert seen == 0 or (dv[:, :, :seen] != 0).all()


@pytest.mark.parametrize("pattern", [Full(), Causal() & SlidingWindow(3)], ids=str)
def test_gradcheck(pattern: Pattern) -> None:
    tensors = draw(5, 6, batch=1, heads=2, kv_heads=1, head_dim=3, value_dim=2)
    assert torch.autograd.gradcheck(lambda q, k, v: blockwise_attention(q, k, v, pattern, 0.5), tensors)


def test_gradcheck_across_a_block_boundary() -> None:
    tensors = draw(BLOCK + 2, BLOCK + 3, batch=1, heads=2, kv_heads=1, head_dim=2)
    pattern = Causal() & SlidingWindow(9)
    assert torch.autograd.gradcheck(lambda q, k, v: blockwise_attention(q, k, v, pattern, 0.5), tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", [Causal(), Causal() & SlidingWindow(100), Full()], ids=str)
def test_low_precision_errs_at_most_twice_as_much_as_the_textbook(dtype: torch.dtype, pattern: Pattern) -> None:
    tensors = q, k, v = draw(261, 261, batch=1, head_dim=32, dtype=dtype)
    d_out, d_lse = (
        torch.randn(q.shape, dtype=torch.float64).to(dtype),
        torch.randn(q.shape[:3], dtype=torch.float64),
    )
    exact_tensors: Any = tuple(x.detach().double().requires_grad_() for x in (q, k, v))
    exact = run(reference_attention, exact_tensors, d_out.double(), d_lse, pattern, 0.3)
    textbook = run(reference_attention, tensors, d_out, d_lse, pattern, 0.3)
    ours = run(blockwise_attention, tensors, d_out, d_lse, pattern, 0.3)
    for mine, theirs, truth in zip(ours, textbook, exact, strict=True):
        assert mine.dtype == theirs.dtype
        ulp = torch.finfo(mine.dtype).eps * truth.abs().max()
        assert (mine - truth).abs().max() <= 2 * (theirs - truth).abs().max() + 4 * ulp


def test_lse_is_fp32_for_half_precision_and_out_keeps_the_inputs_type() -> None:
    out, lse = blockwise_attention(*draw(9, 9, dtype=torch.bfloat16), Causal(), 0.3)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = (x.detach() * 300 for x in draw(140, 140, dtype=torch.float32))
    out, lse = blockwise_attention(q, k, v, Causal(), 1.0)
    expected, expected_lse = reference_attention(q.double(), k.double(), v.double(), Causal(), 1.0)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=0)
    # One score leads by far in nearly every row: most outputs are one value.
    agree = torch.isclose(out.double(), expected, rtol=1e-2).float().mean()
    assert agree > 0.99


@pytest.mark.parametrize("pattern", [Causal(), Causal() & SlidingWindow(130), Window(0, 5)], ids=str)
def test_a_rows_gradient_reaches_the_keys_it_sees_and_no_other(pattern: Pattern) -> None:
    n = 200
    q, k, v = draw(n, n, batch=1, heads=2, kv_heads=1)
    out, lse = blockwise_attention(q, k, v, pattern, 0.5)
    mask = pattern.mask(n, n)
    for row in (0, 1, 127, 128, 129, n - 1):
        loss = out[:, :, row].sum() + lse[:, :, row].sum()
        dq, dk, dv = torch.autograd.grad(loss, (q, k, v), retain_graph=True)
        assert torch.equal((dk != 0).any(-1)[0, 0], mask[row])
        assert torch.equal((dv != 0).any(-1)[0, 0], mask[row])
        others = torch.arange(n) != row
        assert (dq[:, :, others] == 0).all()
        assert (dq[:, :, row] != 0).any()


def test_views_are_read_right_and_nothing_is_written_to() -> None:
    dense = torch.randn(2, 140, 3 * 4 * 8, dtype=torch.float64)
    q, k, v = dense.view(2, 140, 12, 8).transpose(1, 2).split(4, dim=1)
    assert not q.is_contiguous()
    before = dense.clone()
    tensors: Any = tuple(x.detach().requires_grad_() for x in (q, k, v))
    d_out = torch.randn(2, 140, 4, 8, dtype=torch.float64).transpose(1, 2)
    d_lse = torch.randn(2, 4, 140, dtype=torch.float64)
    ours = run(blockwise_attention, tensors, d_out, d_lse, Causal(), 0.5)
    textbook = run(reference_attention, tensors, d_out, d_lse, Causal(), 0.5)
    for mine, expected in zip(ours, textbook, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(dense, before)


def test_backward_twice_over_one_graph_gives_the_same_gradients() -> None:
    tensors = draw(140, 140, batch=1)
    out, _ = blockwise_attention(*tensors, Causal(), 0.5)
    first = torch.autograd.grad(out.sum(), tensors, retain_graph=True)
    second = torch.autograd.grad(out.sum(), tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("loss", [lambda out: out.square().sum(), lambda out: out.sum()])
def test_a_second_derivative_is_refused_rather_than_wrong(loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
    q, k, v = draw(5, 5)
    out, _ = blockwise_attention(q, k, v, Causal(), 0.5)
    with pytest.raises(RuntimeError, match="once only.*reference"):
        torch.autograd.grad(loss(out), q, create_graph=True)


def test_autocast_does_not_lower_it() -> None:
    tensors = draw(140, 140, dtype=torch.float32)
    ones = torch.ones(2, 4, 140, 8), torch.ones(2, 4, 140)
    plain = run(blockwise_attention, tensors, *ones, Causal(), 0.35)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run(blockwise_attention, tensors, *ones, Causal(), 0.35)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_what_was_planned_under_inference_mode_still_serves_training() -> None:
    pattern = Causal() & SlidingWindow(77)  # used nowhere else: nothing is cached yet
    q, k, v = draw(143, 143)
    with torch.inference_mode():
        evaluated, _ = blockwise_attention(q, k, v, pattern, 0.5)
    out, _ = blockwise_attention(q, k, v, pattern, 0.5)
    assert torch.equal(out, evaluated)
    assert_same((q, k, v), pattern, 0.5)


def test_no_tensor_is_quadratic_in_the_sequence_forward_or_backward() -> None:
    class LargestTensor(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, Tensor):
                    self.numel = max(self.numel, tensor.numel())
            return out

    n, width, heads, head_dim = 4_096, 64, 2, 8
    q, k, v = draw(n, n, batch=1, heads=heads, kv_heads=heads, head_dim=head_dim, dtype=torch.float32)
    with LargestTensor() as largest:
        out, _ = blockwise_attention(q, k, v, Causal() & SlidingWindow(width), 0.5)
        out.sum().backward()
    assert q.grad is not None
    assert 0 < largest.numel <= heads * max(n * head_dim, BLOCK * (width + BLOCK))
