"""The textbook path against torch's own attention, Hugging Face's masks and a sum written in Python."""

from __future__ import annotations

import math

import pytest
import torch
from attention_cases import draw
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from toolkit.attention import Causal, Full, Pattern, SlidingWindow, Window
from toolkit.attention.reference import reference_attention

PATTERNS = [Full(), Causal(), Causal() & SlidingWindow(3), SlidingWindow(2), Window(0, 4)]


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    from transformers.models.llama.modeling_llama import repeat_kv

    return repeat_kv(x, heads // x.shape[1])


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("q_len", "kv_len"), [(7, 7), (3, 9), (1, 5)])
def test_value_and_gradients_are_torchs(pattern: Pattern, kv_heads: int, q_len: int, kv_len: int) -> None:
    q, k, v = draw(q_len, kv_len, heads=4, kv_heads=kv_heads, value_dim=5)
    mask = pattern.mask(q_len, kv_len)
    assert mask.any(dim=1).all()  # empty rows have their own test
    out, _ = reference_attention(q, k, v, pattern, scale=0.3)
    theirs = sdpa(q, repeat_heads(k, 4), repeat_heads(v, 4), mask, scale=0.3)
    torch.testing.assert_close(out, theirs, rtol=0, atol=1e-12)
    d_out = torch.randn_like(out)
    for ours, expected in zip(
        torch.autograd.grad(out, (q, k, v), d_out), torch.autograd.grad(theirs, (q, k, v), d_out), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [1, 3, 20])
def test_a_hugging_face_sliding_window_gives_the_same_attention(window: int) -> None:
    from transformers import masking_utils as hf

    q, k, v = draw(9, 9, heads=2, kv_heads=2)
    mask = hf.sdpa_mask(
        1, 9, 9, mask_function=hf.sliding_window_causal_mask_function(window), allow_is_causal_skip=False
    )
    assert mask is not None
    out, _ = reference_attention(q, k, v, SlidingWindow.from_hf(window), scale=0.5)
    torch.testing.assert_close(out, sdpa(q, k, v, mask, scale=0.5), rtol=0, atol=1e-12)


def test_lse_is_the_natural_logarithm_of_the_sum_of_exponentials() -> None:
    q, k, v = (x.detach() for x in draw(3, 4, heads=2, kv_heads=1, head_dim=2, batch=1))
    out, lse = reference_attention(q, k, v, Causal(), scale=0.7)
    for head in range(2):
        for i in range(3):
            visible = range(i + 2)  # the queries are the last three of four positions
            weights = [math.exp(0.7 * float(q[0, head, i] @ k[0, 0, j])) for j in visible]
            assert float(lse[0, head, i]) == pytest.approx(math.log(sum(weights)), abs=1e-12)
            mean = sum(w * v[0, 0, j] for w, j in zip(weights, visible, strict=True)) / sum(weights)
            torch.testing.assert_close(out[0, head, i], mean, rtol=0, atol=1e-12)


def test_rows_that_see_nothing_give_zeros_minus_infinity_and_zero_gradients() -> None:
    q, k, v = draw(6, 6)
    where = 0, 3  # rows 0, 1 and 2 stand before every key
    out, lse = reference_attention(q, k, v, Causal(), 1.0, *where)
    assert (out[:, :, :3] == 0).all()
    assert (lse[:, :, :3] == -torch.inf).all()
    assert torch.isfinite(lse[:, :, 3:]).all()
    gradients = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), torch.ones_like(lse)))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert (gradients[0][:, :, :3] == 0).all()
    assert (gradients[0][:, :, 3:] != 0).any()
    mask = Causal().mask(6, 6, *where)
    theirs = sdpa(q, repeat_heads(k, 4), repeat_heads(v, 4), mask, scale=1.0)
    torch.testing.assert_close(out, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_computed_in_fp32_and_rounded_once(dtype: torch.dtype) -> None:
    q, k, v = (x.detach() for x in draw(9, 9, dtype=dtype))
    out, lse = reference_attention(q, k, v, Causal(), 0.35)
    exact, _ = reference_attention(q.float(), k.float(), v.float(), Causal(), 0.35)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert torch.equal(out, exact.to(dtype))


def test_autocast_does_not_lower_it() -> None:
    q, k, v = (x.detach() for x in draw(9, 9, dtype=torch.float32))
    plain, _ = reference_attention(q, k, v, Causal(), 0.35)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = reference_attention(q, k, v, Causal(), 0.35)
    assert torch.equal(plain, cast)


def test_second_derivatives_are_right() -> None:
    q, k, v = draw(3, 4, heads=2, kv_heads=1, head_dim=2, batch=1)
    assert torch.autograd.gradgradcheck(lambda q, k, v: reference_attention(q, k, v, Causal(), 0.5), (q, k, v))
