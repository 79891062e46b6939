"""Rotation of pairs: a complex product in either layout, the rest passed, the caller's tensor untouched."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toolkit.layers.rotary.apply import rotate_pairs


def textbook(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Pair by pair in complex fp64: z exp(i angle)."""
    pairs = cos.shape[-1]
    out = x.to(torch.float64).clone()
    for k in range(pairs):
        first, second = (2 * k, 2 * k + 1) if interleaved else (k, k + pairs)
        z = torch.complex(out[..., first], out[..., second])
        turned = z * torch.complex(cos[:, None, :, k].double(), sin[:, None, :, k].double())
        out[..., first], out[..., second] = turned.real, turned.imag
    return out


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 7), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_each_pair_is_a_complex_number_that_turns(
    batch: int, heads: int, length: int, pairs: int, passed: int, interleaved: bool
) -> None:
    x = torch.randn(batch, heads, length, 2 * pairs + passed, dtype=torch.float64)
    for rows in {1, batch}:
        angles = torch.randn(rows, length, pairs, dtype=torch.float64)
        cos, sin = 1.5 * angles.cos(), 1.5 * angles.sin()
        before = x.clone()
        out = rotate_pairs(x, cos, sin, interleaved)
        torch.testing.assert_close(out, textbook(x, cos, sin, interleaved), rtol=0, atol=1e-12)
        assert torch.equal(out[..., 2 * pairs :], x[..., 2 * pairs :])
        assert torch.equal(x, before)
        assert out.numel() == 0 or out.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_is_computed_in_the_tables_precision_and_rounded_once(dtype: torch.dtype, interleaved: bool) -> None:
    x, angles = torch.randn(2, 3, 9, 10).to(dtype), torch.randn(2, 9, 4)
    cos, sin = angles.cos(), angles.sin()
    out = rotate_pairs(x, cos, sin, interleaved)
    assert out.dtype == dtype
    assert torch.equal(out, rotate_pairs(x.float(), cos, sin, interleaved).to(dtype))


@pytest.mark.parametrize("interleaved", [False, True])
def test_its_gradient_is_the_rotation_back(interleaved: bool) -> None:
    x = torch.randn(2, 3, 4, 7, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(1, 4, 3, dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    d_out = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(rotate_pairs(x, cos, sin, interleaved), x, d_out)
    torch.testing.assert_close(gradient, rotate_pairs(d_out, cos, -sin, interleaved), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: rotate_pairs(x, cos, sin, interleaved), (x,))


@pytest.mark.parametrize("heads", [0, 2, 5])
def test_the_heads_after_the_first_ones_pass(heads: int) -> None:
    x, angles = torch.randn(2, 5, 4, 8), torch.randn(2, 4, 3)
    out = rotate_pairs(x, angles.cos(), angles.sin(), False, heads)
    assert torch.equal(out[:, :heads], rotate_pairs(x, angles.cos(), angles.sin(), False)[:, :heads])
    assert torch.equal(out[:, heads:], x[:, heads:])
    for wrong in (-1, 6):
        with pytest.raises(ValueError, match=f"heads={wrong}"):
            rotate_pairs(x, angles.cos(), angles.sin(), False, wrong)
