"""The textbook path against torch's own attention, Hugging Face's masks and a sum written in Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attention_cases import draw
from blockwise_cases import Seen
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from toolkit.attention import Causal, Full, Pattern, SlidingWindow, Window
from toolkit.attention.dropout import keep_mask
from toolkit.attention.reference import reference_attention
from toolkit.attention.scoring import Scoring

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
    out, _ = reference_attention(q, k, v, pattern, Scoring(0.3))
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
    out, _ = reference_attention(q, k, v, SlidingWindow.from_hf(window), Scoring(0.5))
    torch.testing.assert_close(out, sdpa(q, k, v, mask, scale=0.5), rtol=0, atol=1e-12)


def test_lse_is_the_natural_logarithm_of_the_sum_of_exponentials() -> None:
    q, k, v = (x.detach() for x in draw(3, 4, heads=2, kv_heads=1, head_dim=2, batch=1))
    out, lse = reference_attention(q, k, v, Causal(), Scoring(0.7))
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
    out, lse = reference_attention(q, k, v, Causal(), Scoring(1.0), *where)
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
    out, lse = reference_attention(q, k, v, Causal(), Scoring(0.35))
    exact, _ = reference_attention(q.float(), k.float(), v.float(), Causal(), Scoring(0.35))
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert torch.equal(out, exact.to(dtype))


def test_autocast_does_not_lower_it() -> None:
    q, k, v = (x.detach() for x in draw(9, 9, dtype=torch.float32))
    plain, _ = reference_attention(q, k, v, Causal(), Scoring(0.35))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = reference_attention(q, k, v, Causal(), Scoring(0.35))
    assert torch.equal(plain, cast)


FEATURES = {
    "softcap": {"softcap": 1.5},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.2])},
    "sink": {},
    "dropout": {"dropout_p": 0.3, "seed": torch.tensor([11])},
}


@pytest.mark.parametrize("feature", [None, *FEATURES])
def test_derivatives_of_both_orders_are_right(feature: str | None) -> None:
    q, k, v = draw(3, 4, heads=2, kv_heads=1, head_dim=2, batch=1)
    sink = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)

    def attend(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> tuple[Tensor, Tensor]:
        settings: dict[str, Any] = FEATURES.get(feature or "", {})
        scoring = Scoring(0.5, sink_logits=sink if feature == "sink" else None, **settings)
        return reference_attention(q, k, v, Causal(), scoring)

    assert torch.autograd.gradcheck(attend, (q, k, v, sink))
    assert torch.autograd.gradgradcheck(attend, (q, k, v, sink))


def scores_and_mask(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return 0.3 * q @ repeat_heads(k, 4).mT, Causal().mask(5, 7)


def test_a_soft_cap_comes_before_the_mask() -> None:
    q, k, v = draw(5, 7)
    scores, mask = scores_and_mask(q, k)
    weights = (2.0 * torch.tanh(scores / 2.0)).masked_fill(~mask, -torch.inf).softmax(-1)
    out, _ = reference_attention(q, k, v, Causal(), Scoring(0.3, softcap=2.0))
    torch.testing.assert_close(out, weights @ repeat_heads(v, 4), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kv_start", [0, 9])
def test_alibi_is_the_distance_between_positions(kv_start: int) -> None:
    q, k, v = draw(5, 7)
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    distance = ((torch.arange(5) + 2)[:, None] - torch.arange(7)).abs()
    mask = (-slopes.double()[:, None, None] * distance).masked_fill(~SlidingWindow(3).mask(5, 7), -torch.inf)
    theirs = sdpa(q, repeat_heads(k, 4), repeat_heads(v, 4), mask.expand(2, 4, 5, 7), scale=0.3)
    scoring = Scoring(0.3, alibi_slopes=slopes)
    out, _ = reference_attention(q, k, v, SlidingWindow(3), scoring, kv_start + 2, kv_start)
    torch.testing.assert_close(out, theirs, rtol=0, atol=1e-12)


def test_a_sink_is_gpt_oss_own() -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    q, k, v = draw(5, 7)
    module = torch.nn.Module()
    module.num_key_value_groups, module.sinks = 2, torch.randn(4, dtype=torch.float64, requires_grad=True)
    module.eval()
    mask = torch.zeros(5, 7, dtype=torch.float64).masked_fill_(~Causal().mask(5, 7), -torch.inf)
    theirs, _ = eager_attention_forward(module, q, k, v, mask[None, None], 0.3)
    out, lse = reference_attention(q, k, v, Causal(), Scoring(0.3, sink_logits=module.sinks))
    torch.testing.assert_close(out, theirs.transpose(1, 2), rtol=0, atol=1e-12)
    d_out = torch.randn_like(out)
    inputs = q, k, v, module.sinks
    ours = torch.autograd.grad(out, inputs, d_out, retain_graph=True)
    expected = torch.autograd.grad(theirs, inputs, d_out.transpose(1, 2))
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
    _, without = reference_attention(q, k, v, Causal(), Scoring(0.3))
    torch.testing.assert_close(lse, torch.logaddexp(without, module.sinks[:, None].expand(4, 5)), rtol=0, atol=1e-12)


def test_a_row_that_sees_only_the_sink() -> None:
    q, k, v = draw(6, 6)
    sink = torch.randn(4, dtype=torch.float64, requires_grad=True)
    out, lse = reference_attention(q, k, v, Causal(), Scoring(1.0, sink_logits=sink), 0, 3)
    assert (out[:, :, :3] == 0).all()
    torch.testing.assert_close(lse[:, :, :3], sink[:, None].expand(2, 4, 3), rtol=0, atol=1e-15)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum() + lse.sum(), (q, k, v, sink)))


def test_dropout_comes_after_the_softmax_and_leaves_the_lse_alone() -> None:
    q, k, v = draw(5, 7)
    scores, mask = scores_and_mask(q, k)
    scoring = Scoring(0.3, dropout_p=0.4, seed=torch.tensor([7]))
    out, lse = reference_attention(q, k, v, Causal(), scoring, 12, 10)
    batch, head = torch.arange(2)[:, None, None, None], torch.arange(4)[:, None, None]
    keep = keep_mask(torch.tensor([7]), batch, head, torch.arange(12, 17)[:, None], torch.arange(10, 17), 0.4)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    torch.testing.assert_close(out, (weights * keep / 0.6) @ repeat_heads(v, 4), rtol=0, atol=1e-12)
    assert torch.equal(lse, reference_attention(q, k, v, Causal(), Scoring(0.3), 12, 10)[1])


@pytest.mark.parametrize("lead", [(1, 1), (2, 1), (1, 4), (2, 4)])
def test_masks_may_differ_by_batch_row_and_head(lead: tuple[int, int]) -> None:
    q, k, v = draw(5, 7)
    mask = torch.rand(*lead, 5, 7) < 0.6
    mask[..., 0] = True
    out, _ = reference_attention(q, k, v, Seen(mask), Scoring(0.3))
    theirs = sdpa(q, repeat_heads(k, 4), repeat_heads(v, 4), mask, scale=0.3)
    torch.testing.assert_close(out, theirs, rtol=0, atol=1e-12)
