"""``attention()``: its defaults, its laws over positions and merged parts, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import draw
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from toolkit.attention import (
    BlockMask,
    Causal,
    DilatedWindow,
    Documents,
    Full,
    GlobalTokens,
    Pattern,
    PerHead,
    Sinks,
    SlidingWindow,
    Strided,
    Window,
    attention,
    merge,
)
from toolkit.attention.reference import reference_attention
from toolkit.attention.scoring import Scoring


def test_defaults_are_causal_and_head_dim_to_the_minus_one_half() -> None:
    q, k, v = draw(11, 11, heads=4, kv_heads=4, head_dim=8, value_dim=5)
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(attention(q, k, v), expected, rtol=0, atol=1e-12)
    with sdpa_kernel(SDPBackend.MATH):
        full = F.scaled_dot_product_attention(q, k, v, scale=2.0)
    torch.testing.assert_close(attention(q, k, v, Full(), scale=2.0), full, rtol=0, atol=1e-12)


def test_query_head_h_uses_key_head_h_over_the_group_size() -> None:
    q, k, v = draw(6, 6, heads=6, kv_heads=2)
    whole = attention(q, k, v)
    for head in range(6):
        key_head = slice(head // 3, head // 3 + 1)
        alone = attention(q[:, head : head + 1], k[:, key_head], v[:, key_head])
        torch.testing.assert_close(whole[:, head : head + 1], alone, rtol=0, atol=1e-12)


def test_backends_are_what_they_are_called() -> None:
    q, k, v = draw(9, 9)
    expected, lse = reference_attention(q, k, v, Causal(), Scoring(8**-0.5))
    assert torch.equal(attention(q, k, v, backend="reference"), expected)
    for backend in ("auto", "blockwise"):
        out, own_lse = attention(q, k, v, backend=backend, return_lse=True)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(own_lse, lse, rtol=0, atol=1e-12)
        assert "toolkit_attention" in type(out.grad_fn).__name__
    assert "toolkit_attention" not in type(attention(q, k, v, backend="reference").grad_fn).__name__


def test_the_kernels_without_a_gpu_or_the_interpreter_are_refused() -> None:
    q, k, v = draw(9, 9, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="backend='triton' on cpu.*GPU.*TRITON_INTERPRET=1.*'blockwise'"):
        attention(q, k, v, backend="triton")


def settings_of(heads: int) -> dict[str, Any]:
    """Every setting that changes a score."""
    return {
        "scale": 0.7,
        "softcap": 1.5,
        "sink_logits": torch.randn(heads, dtype=torch.float64, requires_grad=True),
        "alibi_slopes": torch.rand(heads),
        "dropout_p": 0.3,
    }


@pytest.mark.parametrize(
    "pattern",
    [
        Causal(),
        Causal() & (SlidingWindow(5) | Sinks(2)),
        Causal() & (DilatedWindow(3, 2) | GlobalTokens(positions=[1, 9, 30])),
        Causal() & Strided(6),
        Documents(torch.tensor([[0] * 20 + [1] * 21, [3] * 5 + [-1] * 6 + [2] * 30])) & Causal(),
        PerHead([Causal(), Strided(4), Full(), SlidingWindow(3)]),
    ],
    ids=str,
)
def test_backends_agree_in_value_and_gradient_with_every_feature(pattern: Pattern) -> None:
    q, k, v = draw(37, 41, value_dim=6)
    settings = settings_of(4)
    inputs = q, k, v, settings["sink_logits"]
    found = []
    for backend in ("blockwise", "reference"):
        torch.manual_seed(7)  # the same dropout
        out, lse = attention(q, k, v, pattern, return_lse=True, backend=backend, **settings)
        weights = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape) for x in (out, lse)]
        total = (out * weights[0]).sum() + (lse * weights[1]).sum()
        found.append((out, lse, *torch.autograd.grad(total, inputs)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


def test_dropout_is_drawn_from_torchs_generator() -> None:
    q, k, v = draw(20, 20)
    torch.manual_seed(3)
    first, second = (attention(q, k, v, dropout_p=0.5) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(attention(q, k, v, dropout_p=0.5), first)
    assert not torch.equal(first, second)
    assert torch.equal(attention(q, k, v, dropout_p=0.0), attention(q, k, v))


@pytest.mark.parametrize("backend", ["blockwise", "reference"])
def test_some_of_the_heads_drop_what_they_would_among_all(backend: str) -> None:
    q, k, v = draw(37, 41, heads=6, kv_heads=3)
    settings = {"dropout_p": 0.3, "dropout_seed": torch.tensor([2**40 + 5]), "backend": backend}
    for pattern in (Causal(), Causal() & DilatedWindow(3, 2)):
        whole = attention(q, k, v, pattern, **settings)
        mine = [x[:, first:].detach().requires_grad_() for x, first in ((q, 2), (k, 1), (v, 1))]
        part = attention(*mine, pattern, first_head=2, **settings)
        torch.testing.assert_close(part, whole[:, 2:], rtol=0, atol=1e-12)
        ours, all_heads = torch.autograd.grad(part.sin().sum(), mine), torch.autograd.grad(whole.sin().sum(), (q, k, v))
        for one, other, first in zip(ours, all_heads, (2, 1, 1), strict=True):
            torch.testing.assert_close(one, other[:, first:], rtol=0, atol=1e-12)


def test_a_seed_that_is_given_draws_none() -> None:
    q, k, v = draw(20, 20)
    torch.manual_seed(3)
    drawn = attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(3)
    seed = torch.randint(2**63 - 1, (1,))
    state = torch.get_rng_state()
    assert torch.equal(attention(q, k, v, dropout_p=0.5, dropout_seed=seed), drawn)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_see_nothing_may_lie_between_others_in_every_dtype(dtype: torch.dtype) -> None:
    q, k, v = draw(6, 6, dtype=dtype)
    pattern = Documents(torch.tensor([0, 0, -1, 0, 1, -1]))
    found = []
    for backend in ("blockwise", "reference"):
        out, lse = attention(q, k, v, pattern, backend=backend, return_lse=True)
        assert lse.isinf().any(dim=(0, 1)).tolist() == [False, False, True, False, False, True]
        found.append((out, *torch.autograd.grad(out.float().sin().sum(), (q, k, v))))
    torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2 if dtype != torch.float32 else 1e-5)


def test_full_attention_may_have_more_queries_than_keys() -> None:
    q, k, v = draw(9, 4)
    for backend in ("blockwise", "reference"):
        out = attention(q, k, v, Full(), backend=backend)
        with sdpa_kernel(SDPBackend.MATH):
            expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["blockwise", "reference"])
@pytest.mark.parametrize("pattern", [Full(), Causal(), Causal() & SlidingWindow(40), Window(3, 200)], ids=str)
@pytest.mark.parametrize("cut", [1, 128, 150])
def test_two_parts_of_the_keys_merged_by_lse_are_the_whole(backend: str, pattern: Pattern, cut: int) -> None:
    n = 210
    q, k, v = draw(n, n, batch=1)
    whole, whole_lse = attention(q, k, v, pattern, return_lse=True, backend=backend)
    first = attention(q, k[:, :, :cut], v[:, :, :cut], pattern, return_lse=True, q_start=0, backend=backend)
    second = attention(
        q, k[:, :, cut:], v[:, :, cut:], pattern, return_lse=True, q_start=0, kv_start=cut, backend=backend
    )
    out, lse = merge(*zip(first, second, strict=True))
    torch.testing.assert_close(out, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, whole_lse, rtol=0, atol=1e-12)


def test_gradients_flow_through_a_merge_and_are_the_wholes() -> None:
    n, cut = 150, 60
    q, k, v = draw(n, n, batch=1)
    whole = attention(q, k, v, Full())
    parts = [
        attention(q, k[:, :, :cut], v[:, :, :cut], Full(), return_lse=True, q_start=0),
        attention(q, k[:, :, cut:], v[:, :, cut:], Full(), return_lse=True, q_start=0, kv_start=cut),
    ]
    d_out = torch.randn_like(whole)
    expected = torch.autograd.grad(whole, (q, k, v), d_out)
    # lse is an output like any other: with its gradient lost, dq and dk would be wrong here.
    for mine, theirs in zip(
        torch.autograd.grad(merge(*zip(*parts, strict=True))[0], (q, k, v), d_out), expected, strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunks", [[150], [1, 149], [128, 22], [50, 50, 50]])
@pytest.mark.parametrize("pattern", [Causal(), Causal() & SlidingWindow(30)], ids=str)
def test_queries_in_chunks_over_growing_keys_are_the_whole(chunks: list[int], pattern: Pattern) -> None:
    q, k, v = draw(150, 150, batch=1)
    whole = attention(q, k, v, pattern)
    at, parts = 0, []
    for chunk in chunks:
        at += chunk
        parts.append(attention(q[:, :, at - chunk : at], k[:, :, :at], v[:, :, :at], pattern))
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=0, atol=1e-12)


def test_moving_queries_and_keys_together_changes_nothing() -> None:
    q, k, v = draw(10, 13, batch=1)
    pattern = Causal() & SlidingWindow(4)
    here = attention(q, k, v, pattern, q_start=2, kv_start=1)
    there = attention(q, k, v, pattern, q_start=1002, kv_start=1001)
    assert torch.equal(here, there)


def test_a_window_as_long_as_the_sequence_is_causal_attention() -> None:
    q, k, v = draw(140, 140, batch=1)
    expected = attention(q, k, v, Causal())
    torch.testing.assert_close(attention(q, k, v, Causal() & SlidingWindow(140)), expected, rtol=0, atol=1e-12)
    shorter = attention(q, k, v, Causal() & SlidingWindow(139))
    assert torch.equal(shorter[:, :, 0], expected[:, :, 0])
    assert not torch.equal(shorter[:, :, -1], expected[:, :, -1])


def test_keys_and_values_reordered_together_give_the_same_full_attention() -> None:
    q, k, v = draw(5, 150, batch=1)
    order = torch.randperm(150)
    expected = attention(q, k, v, Full())
    torch.testing.assert_close(attention(q, k[:, :, order], v[:, :, order], Full()), expected, rtol=0, atol=1e-12)


def test_return_lse_adds_the_lse_and_nothing_else() -> None:
    q, k, v = draw(9, 9)
    alone = attention(q, k, v)
    out, lse = attention(q, k, v, return_lse=True)
    assert torch.equal(alone, out)
    assert lse.shape == q.shape[:3]


Q, K, V = (2, 4, 5, 8), (2, 2, 5, 8), (2, 2, 5, 6)


@pytest.mark.parametrize(
    ("q", "k", "v", "named"),
    [
        ((4, 5, 8), K, V, r"q\.shape=\(4, 5, 8\).*\(batch, heads, length, head_dim\)"),
        (Q, (2, 5, 8), V, r"k\.shape"),
        (Q, K, (2, 2, 5, 6, 1), r"v\.shape"),
        ((2, 3, 5, 8), K, V, r"kv_heads=2: it must be a divisor of heads=3"),
        (Q, (2, 2, 5, 7), V, r"k head_dim=7"),
        (Q, K, (2, 2, 6, 6), r"v \(kv_heads, kv_len\)=\(2, 6\)"),
        (Q, K, (2, 4, 5, 6), r"v \(kv_heads, kv_len\)=\(4, 5\)"),
        (Q, (1, 2, 5, 8), (1, 2, 5, 6), r"k batch=1"),
        (Q, K, (1, 2, 5, 6), r"v batch=1"),
        ((2, 4, 7, 8), K, V, r"q_len=7: it must be at most"),
        (Q, (2, 0, 5, 8), (2, 0, 5, 6), r"k\.shape=\(2, 0, 5, 8\)"),
        ((2, 4, 5, 0), (2, 2, 5, 0), V, r"k\.shape=\(2, 2, 5, 0\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        attention(torch.randn(q), torch.randn(k), torch.randn(v))


def test_dtypes_and_devices_that_do_not_fit_are_named() -> None:
    q, k, v = (x.detach() for x in draw(5, 5, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"k\.dtype=torch.float64"):
        attention(q, k.double(), v)
    with pytest.raises(ValueError, match=r"v\.dtype=torch.bfloat16"):
        attention(q, k, v.bfloat16())
    with pytest.raises(ValueError, match=r"q\.dtype=torch.int64.*floating"):
        attention(q.long(), k.long(), v.long())
    with pytest.raises(ValueError, match=r"k\.device"):
        attention(q, k.to("meta"), v)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"softcap": -1.0}, r"softcap=-1\.0"),
        ({"softcap": float("inf")}, "softcap=inf"),
        ({"q_start": 1.5}, r"q_start=1\.5"),
        ({"dropout_p": 1.0}, r"dropout_p=1\.0"),
        ({"dropout_p": -0.1}, r"dropout_p=-0\.1"),
        ({"first_head": -1}, "first_head=-1: it must be 0 or more"),
        ({"dropout_seed": torch.tensor([3])}, r"dropout_seed='torch.int64 \(1,\) on cpu': it must be None where drop"),
        ({"dropout_p": 0.1, "dropout_seed": torch.tensor(3)}, r"dropout_seed='torch.int64 \(\) on cpu': it must"),
        ({"sink_logits": torch.zeros(3)}, r"sink_logits\.shape=\(3,\).*\(4,\)"),
        ({"alibi_slopes": torch.zeros(4, dtype=torch.int64)}, r"alibi_slopes\.dtype=torch\.int64"),
        ({"alibi_slopes": torch.zeros(4, requires_grad=True)}, r"alibi_slopes\.requires_grad=True"),
        ({"sink_logits": torch.zeros(4, device="meta")}, r"sink_logits\.device"),
        ({"q_start": -1}, "q_start=-1"),
        ({"kv_start": -1}, "kv_start=-1"),
        ({"pattern": "Causal()"}, r"pattern='Causal\(\)'"),
        ({"pattern": GlobalTokens(positions=[5])}, "positions=5.*5"),
        ({"pattern": Documents(torch.zeros(2, 4, dtype=torch.int64))}, "4"),
        ({"pattern": Documents(torch.zeros(3, 5, dtype=torch.int64))}, "pattern batch=3"),
        ({"pattern": PerHead([Causal()] * 3)}, "pattern heads=3"),
        ({"pattern": BlockMask(torch.ones(1, 1, dtype=torch.bool, device="meta"), 8)}, "pattern device"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], named: str) -> None:
    q, k, v = draw(5, 5)
    with pytest.raises(ValueError, match=named):
        attention(q, k, v, **settings)


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    q, k, v = draw(5, 5)
    with pytest.raises(ValueError, match=r"backend='flash'.*'auto'.*'blockwise'.*'reference'"):
        attention(q, k, v, backend="flash")
