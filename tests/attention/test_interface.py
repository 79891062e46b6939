"""``attention()``: its defaults, its laws over positions and merged parts, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from attention_cases import draw
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from toolkit.attention import Causal, Full, Pattern, SlidingWindow, Window, attention
from toolkit.attention.reference import reference_attention


def merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Attention over disjoint sets of keys put together by their log-sum-exps."""
    out, lse = parts[0]
    for other, other_lse in parts[1:]:
        total = torch.logaddexp(lse, other_lse)
        out = out * torch.exp(lse - total)[..., None] + other * torch.exp(other_lse - total)[..., None]
        lse = total
    return out, lse


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


def test_backends_are_what_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = draw(9, 9)
    expected, lse = reference_attention(q, k, v, Causal(), 8**-0.5)
    assert torch.equal(attention(q, k, v, backend="reference"), expected)
    for backend in ("auto", "blockwise"):
        out, own_lse = attention(q, k, v, backend=backend, return_lse=True)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(own_lse, lse, rtol=0, atol=1e-12)
    called = []

    def fake(*arguments: object) -> tuple[Tensor, Tensor]:
        called.append(arguments)
        return q, q

    from toolkit.attention import interface

    monkeypatch.setitem(interface.BACKENDS, "blockwise", fake)
    attention(q, k, v)
    assert len(called) == 1


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
    out, lse = merge([first, second])
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
    for mine, theirs in zip(torch.autograd.grad(merge(parts)[0], (q, k, v), d_out), expected, strict=True):
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


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    q, k, v = draw(5, 5)
    with pytest.raises(ValueError, match=r"backend='flash'.*'auto'.*'blockwise'.*'reference'"):
        attention(q, k, v, backend="flash")
