"""Global tokens with their own projections: Hugging Face's Longformer, and what a layer over them refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.attention import (
    Causal,
    DilatedWindow,
    GlobalTokens,
    KeyValueCache,
    PerHead,
    SlidingWindow,
    attention,
    attention_work,
)
from toolkit.layers import RotaryEmbedding, SelfAttention

DIM, HEADS, LENGTH = 16, 2, 24


@pytest.mark.parametrize("form", ["positions", "mask", "count"])
def test_it_is_longformers(form: str) -> None:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    window, batch = 8, 2
    config = LongformerConfig(
        hidden_size=DIM, num_attention_heads=HEADS, attention_window=[window], attention_probs_dropout_prob=0.0
    )
    theirs = LongformerSelfAttention(config, layer_id=0).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    marks = torch.zeros(batch, LENGTH, dtype=torch.bool)
    if form == "mask":
        marks[0, [3, 11]] = marks[1, [0, 5, 20]] = True
        tokens = GlobalTokens(mask=marks)
    elif form == "positions":
        marks[:, [3, 11, 19]] = True
        tokens = GlobalTokens(positions=[3, 11, 19])
    else:
        marks[:, :2] = True
        tokens = GlobalTokens(2)
    layer = SelfAttention(DIM, HEADS, pattern=SlidingWindow(window // 2 + 1) | tokens, global_projections=True)
    local = [theirs.query.weight, theirs.key.weight, theirs.value.weight]
    own = [theirs.query_global.weight, theirs.key_global.weight, theirs.value_global.weight]
    layer.qkv_proj.data, layer.core.qkv_proj.data = torch.cat(local).detach(), torch.cat(own).detach()
    layer.o_proj.data = torch.eye(DIM)
    x = torch.randn(batch, LENGTH, DIM)
    mask = torch.zeros(batch, LENGTH).masked_fill(marks, 10000.0)
    expected = theirs(x.clone(), mask, is_index_masked=mask < 0, is_index_global_attn=mask > 0, is_global_attn=True)[0]
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def textbook(layer: SelfAttention, x: Tensor, marks: Tensor) -> Tensor:
    """Every row twice, with either set of projections; each takes the one that is its own."""
    outs = []
    for weight in (layer.qkv_proj, layer.core.qkv_proj):
        assert isinstance(weight, Tensor)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in F.linear(x, weight).chunk(3, dim=-1))
        if layer.rope is not None:
            q, k = layer.rope(q, k)
        outs.append(attention(q, k, v, layer.pattern, backend="reference"))
    out = outs[1].where(marks[:, None, :, None], outs[0])
    return F.linear(out.transpose(1, 2).flatten(2), layer.o_proj)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
def test_each_row_has_its_own_projections_and_gradients(rotary: bool, causal: bool, per_row: bool) -> None:
    marks = torch.zeros(2, LENGTH, dtype=torch.bool)
    marks[0, [3, 11]] = marks[1, [3, 11]] = True
    if per_row:
        marks[1, 20] = True
    tokens = GlobalTokens(mask=marks) if per_row else GlobalTokens(positions=[3, 11])
    pattern = SlidingWindow(4) | tokens
    rope = RotaryEmbedding(DIM // HEADS) if rotary else None
    layer = SelfAttention(
        DIM, HEADS, pattern=Causal() & pattern if causal else pattern, rope=rope, global_projections=True
    ).double()
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64, requires_grad=True)
    inputs = (x, *layer.parameters())
    found = []
    for out in (layer(x), textbook(layer, x, marks)):
        found.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_heads_may_have_windows_of_their_own() -> None:
    tokens = GlobalTokens(positions=[3, 11])
    pattern = PerHead([SlidingWindow(4), DilatedWindow(3, 2)]) | tokens
    layer = SelfAttention(DIM, HEADS, pattern=pattern, global_projections=True).double()
    marks = torch.zeros(2, LENGTH, dtype=torch.bool)
    marks[:, [3, 11]] = True
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    torch.testing.assert_close(layer(x), textbook(layer, x, marks), rtol=0, atol=1e-12)
    assert sum(part.needed for part in layer.work(LENGTH) if part.kind == "scores") > 0


def test_work_is_the_pairs_of_both_kinds_of_rows_and_the_projections_of_global_ones() -> None:
    pattern = SlidingWindow(4) | GlobalTokens(positions=[3, 11])
    plain, own = (SelfAttention(DIM, HEADS, pattern=pattern, global_projections=flag) for flag in (False, True))
    pairs = [sum(part.needed for part in layer.work(LENGTH) if part.kind == "scores") for layer in (plain, own)]
    assert pairs[0] == pairs[1] == attention_work(pattern, LENGTH, HEADS, DIM // HEADS).needed
    projected = [sum(part.needed for part in layer.work(LENGTH) if part.kind == "attention") for layer in (plain, own)]
    assert projected[1] - projected[0] == DIM * DIM * (2 + 2 * LENGTH)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pattern=Causal\(\).*GlobalTokens"):
        SelfAttention(DIM, HEADS, pattern=Causal(), global_projections=True)
    with pytest.raises(ValueError, match="GlobalTokens"):
        SelfAttention(DIM, HEADS, pattern=GlobalTokens(1) | GlobalTokens(positions=[4]), global_projections=True)
    layer = SelfAttention(DIM, HEADS, pattern=Causal() & (SlidingWindow(4) | GlobalTokens(1)), global_projections=True)
    cache = KeyValueCache()
    layer(torch.randn(1, 5, DIM), cache)
    with pytest.raises(ValueError, match="cache=5.*empty"):
        layer(torch.randn(1, 1, DIM), cache)
