"""Attention as an operator of torch: its schema, its compiling, its FLOPs, its memory of patterns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_cases import draw
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from toolkit.attention import (
    Causal,
    DilatedWindow,
    Documents,
    GlobalTokens,
    Pattern,
    PerHead,
    Sinks,
    SlidingWindow,
    Strided,
    attention,
)
from toolkit.attention.operator import attention_backward_operator, attention_operator, decoded
from toolkit.attention.parse import encode

IDS = torch.tensor([[0] * 9 + [1] * 14, [2] * 20 + [-1] * 3])
PATTERNS = [
    Causal(),
    Causal() & (SlidingWindow(5) | Sinks(2)),
    Causal() & (DilatedWindow(3, 2) | GlobalTokens(positions=[1, 9])),
    PerHead([Causal(), Strided(4), SlidingWindow(3), Causal() & SlidingWindow(6)]),
    Causal() & Documents(IDS),
]


def arguments(pattern: Pattern, dropout_p: float = 0.0, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """What the interface hands to the operator, with every optional tensor."""
    q, k, v = draw(23, 23, value_dim=6, dtype=dtype)
    text, tensors = encode(pattern)
    sinks, slopes = torch.zeros(4, requires_grad=True), torch.full((4,), 0.1)
    return q, k, v, sinks, slopes, torch.tensor([5]), tensors, text, 0, 0, 0.3, 2.0, dropout_p, 3, "blockwise"


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_opcheck_passes(pattern: Pattern) -> None:
    given = arguments(pattern, dropout_p=0.2)
    torch.library.opcheck(attention_operator, given)
    q, k, v, *rest = (x.detach() if isinstance(x, Tensor) else x for x in given)
    out, lse = attention_operator(q, k, v, *rest)
    torch.library.opcheck(
        attention_backward_operator, (torch.ones_like(out), torch.ones_like(lse), q, k, v, out, lse, *rest)
    )
    no_sink = (q.requires_grad_(), k, v, None, None, None, *rest[3:-3], 0.0, 0, "blockwise")
    torch.library.opcheck(attention_operator, no_sink)


WINDOW = Causal() & (SlidingWindow(5) | Sinks(2))
DOCUMENTS = Causal() & Documents(IDS)


@pytest.mark.parametrize(
    "call",
    [
        attention,
        lambda q, k, v: attention(q, k, v, WINDOW, softcap=2.0, return_lse=True)[1],
        lambda q, k, v: attention(q, k, v, Causal() & SlidingWindow(4)),  # a pattern made while compiling
        lambda q, k, v: attention(q, k, v, DOCUMENTS, alibi_slopes=torch.ones(4)),
    ],
    ids=["default", "held", "inline", "documents"],
)
def test_it_compiles_whole_with_its_gradients(call: Callable[..., Tensor]) -> None:
    q, k, v = draw(23, 23, dtype=torch.float32)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found = []
    for run in (call, compiled):
        out = run(q, k, v)
        found.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_flops_are_the_textbooks_times_the_visible_share(pattern: Pattern) -> None:
    q, k, v = draw(23, 23, value_dim=6, dtype=torch.float32)
    counted = []
    for backend in ("blockwise", "reference"):
        with FlopCounterMode(display=False) as forward:
            out = attention(q, k, v, pattern, backend=backend)
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        counted.append((forward.get_total_flops(), backward.get_total_flops()))
    visible = pattern.mask(23, 23).expand(2, 4, -1, -1).double().mean().item()
    for ours, textbook in zip(*counted, strict=True):
        assert ours == pytest.approx(textbook * visible, rel=1e-12)


def test_a_second_derivative_is_refused_by_name_and_the_textbook_has_it() -> None:
    q, k, v = draw(5, 5)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        torch.autograd.grad(attention(q, k, v).sum(), q, create_graph=True)
    (dq,) = torch.autograd.grad(attention(q, k, v, backend="reference").square().sum(), q, create_graph=True)
    torch.autograd.grad(dq.square().sum(), (q, k, v))


def test_gradcheck() -> None:
    q, k, v = draw(5, 7, batch=1, heads=2, kv_heads=1, head_dim=3, value_dim=2)
    sinks = torch.randn(2, dtype=torch.float64, requires_grad=True)
    pattern = Causal() & (SlidingWindow(2) | Sinks(1))

    def call(*inputs: Tensor) -> Any:
        *qkv, sinks = inputs
        return attention(*qkv, pattern, softcap=1.5, sink_logits=sinks, return_lse=True)

    assert torch.autograd.gradcheck(call, (q, k, v, sinks))


def test_a_pattern_is_remembered_until_its_tensor_changes() -> None:
    ids = IDS.clone()
    text, tensors = encode(Documents(ids))
    first = decoded(text, tensors)
    assert decoded(text, tensors) is first
    q, k, v = draw(23, 23, dtype=torch.float32)
    before = attention(q, k, v, Documents(ids))
    ids.zero_()
    assert decoded(text, tensors) is not first
    torch.testing.assert_close(attention(q, k, v, Documents(ids)), attention(q, k, v, Documents(torch.zeros_like(ids))))
    assert not torch.allclose(attention(q, k, v, Documents(ids)), before)


def test_in_inference_mode_a_changed_tensor_is_seen() -> None:
    with torch.inference_mode():
        q, k, v = (x.detach() for x in draw(23, 23, dtype=torch.float32))
        ids = torch.zeros(2, 23, dtype=torch.int64)
        for step in range(3):
            ids[:, 20 - 5 * step :] += 1
            out = attention(q, k, v, Documents(ids))
            torch.testing.assert_close(out, attention(q, k, v, Documents(ids), backend="reference"))
