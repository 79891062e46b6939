"""Self-attention against torch's and Hugging Face's, over a cache, and at its seams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.attention import (
    Causal,
    Full,
    KeyValueCache,
    RollingCache,
    Sinks,
    SlidingWindow,
    attention,
    attention_work,
)
from toolkit.attention.selection import MoBA, NativeSparse
from toolkit.layers import RotaryEmbedding, SelfAttention


def test_without_positions_it_is_torchs_multihead_attention() -> None:
    layer = SelfAttention(12, heads=3, pattern=Full())
    theirs = torch.nn.MultiheadAttention(12, 3, bias=False, batch_first=True)
    theirs.load_state_dict({"in_proj_weight": layer.qkv_proj, "out_proj.weight": layer.o_proj})
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(layer(x), theirs(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 8), (4, 2, 8), (6, 1, 4)])
def test_with_rotary_positions_and_grouped_queries_it_is_llamas(heads: int, kv_heads: int, head_dim: int) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    dim = 24
    config = LlamaConfig(hidden_size=dim, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim)
    config._attn_implementation = "sdpa"
    theirs = LlamaAttention(config, layer_idx=0)
    layer = SelfAttention(dim, heads, kv_heads, head_dim, rope=RotaryEmbedding(head_dim))
    q, k, v = layer.qkv_proj.detach().split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim])
    names = {
        "q_proj.weight": q,
        "k_proj.weight": k,
        "v_proj.weight": v,
        "o_proj.weight": layer.o_proj.detach(),
    }
    theirs.load_state_dict(names, strict=True)
    x = torch.randn(2, 9, dim)
    positions = LlamaRotaryEmbedding(config)(x, torch.arange(9)[None])
    expected, _ = theirs(x, positions, None)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rope", [None, RotaryEmbedding(4)], ids=["plain", "rotary"])
@pytest.mark.parametrize("pattern", [Causal(), Causal() & SlidingWindow(3)], ids=str)
@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 1, 4], [2, 7]])
def test_chunks_over_a_cache_are_the_whole(rope: RotaryEmbedding | None, pattern: Any, chunks: list[int]) -> None:
    layer = SelfAttention(8, 4, 2, 4, pattern, rope).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    cache = KeyValueCache()
    parts = [layer(part, cache, 5) for part in x.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), layer(x), rtol=0, atol=1e-12)
    assert (cache.length(5), cache.length(0)) == (9, 0)


def test_positions_matter_with_a_rotary_embedding_and_not_without() -> None:
    x = torch.randn(1, 6, 8)
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    plain = SelfAttention(8, 2, pattern=Full())
    torch.testing.assert_close(plain(swapped)[:, 2:], plain(x)[:, 2:])
    rotary = SelfAttention(8, 2, pattern=Full(), rope=RotaryEmbedding(4))
    assert not torch.allclose(rotary(swapped)[:, 2:], rotary(x)[:, 2:], atol=1e-3)


def test_a_later_token_changes_nothing_before_it() -> None:
    layer = SelfAttention(8, 2, rope=RotaryEmbedding(4))
    x = torch.randn(1, 6, 8)
    changed = torch.cat([x[:, :4], torch.randn(1, 2, 8)], dim=1)
    torch.testing.assert_close(layer(changed)[:, :4], layer(x)[:, :4])
    assert not torch.allclose(layer(changed)[:, 4:], layer(x)[:, 4:])


def test_the_function_that_attends_can_be_replaced() -> None:
    seen = []

    def attend(q: Tensor, k: Tensor, v: Tensor, pattern: object, **settings: Any) -> Tensor:
        seen.append((q.shape, k.shape, v.shape, pattern))
        assert settings == {"q_start": 0, "kv_start": 0}
        return attention(q, k, v, Causal())

    layer = SelfAttention(8, 4, 2, pattern=SlidingWindow(3), attend=attend)
    layer(torch.randn(2, 5, 8))
    assert seen == [((2, 4, 5, 2), (2, 2, 5, 2), (2, 2, 5, 2), SlidingWindow(3))]


def test_gradcheck() -> None:
    layer = SelfAttention(4, 2, 1, 2, Causal() & SlidingWindow(2), RotaryEmbedding(2)).double()
    x = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, qkv_proj: Tensor, o_proj: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(layer, {"qkv_proj": qkv_proj, "o_proj": o_proj}, (x,))
        return out

    assert torch.autograd.gradcheck(call, (x, layer.qkv_proj, layer.o_proj))


def test_bf16_autocast_agrees_with_fp32() -> None:
    layer = SelfAttention(32, 4, 2, rope=RotaryEmbedding(8))
    x = torch.randn(2, 140, 32)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = layer(x)
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast.float(), exact, rtol=0, atol=3e-2 * float(exact.detach().abs().max()))


def test_weights_start_at_fan_in_to_the_minus_one_half_without_biases() -> None:
    layer = SelfAttention(256, heads=4, kv_heads=2, head_dim=96)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "qkv_proj": (8 * 96, 256),
        "o_proj": (256, 4 * 96),
    }
    assert float(layer.qkv_proj.detach().std()) == pytest.approx(256**-0.5, rel=0.02)
    assert float(layer.o_proj.detach().std()) == pytest.approx(384**-0.5, rel=0.02)


def test_defaults_are_as_many_key_heads_even_heads_and_causal() -> None:
    layer = SelfAttention(12, heads=3)
    assert (layer.kv_heads, layer.head_dim, layer.pattern, layer.rope) == (3, 4, Causal(), None)
    x = torch.randn(1, 5, 12)
    q, k, v = (part.view(1, 5, 3, 4).transpose(1, 2) for part in F.linear(x, layer.qkv_proj).chunk(3, dim=-1))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(x), F.linear(expected, layer.o_proj))


def test_with_normalised_queries_and_keys_it_is_qwen3s() -> None:
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding

    config = Qwen3Config(hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_hidden_layers=1)
    config._attn_implementation = "sdpa"
    theirs = Qwen3Attention(config, layer_idx=0)
    layer = SelfAttention(24, 4, 2, 8, rope=RotaryEmbedding(8, config.rope_parameters["rope_theta"]), qk_norm=True)
    for norm in (layer.q_norm, layer.k_norm):
        assert norm is not None
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    q, k, v = layer.qkv_proj.detach().split([32, 16, 16])
    norms = {"q_norm.weight": layer.q_norm.weight, "k_norm.weight": layer.k_norm.weight}  # type: ignore[union-attr]
    weights = {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v, "o_proj.weight": layer.o_proj.detach()}
    theirs.load_state_dict({**weights, **norms}, strict=True)
    x = torch.randn(2, 9, 24)
    expected, _ = theirs(x, Qwen3RotaryEmbedding(config)(x, torch.arange(9)[None]), None)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_learned_sinks_are_gpt_oss_s() -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    layer = SelfAttention(16, 4, 2, pattern=Causal() & SlidingWindow(3), sinks=True)
    assert layer.sink_logits is not None
    torch.nn.init.normal_(layer.sink_logits)
    module = torch.nn.Module()
    module.num_key_value_groups, module.sinks = 2, layer.sink_logits  # type: ignore[assignment]
    x = torch.randn(2, 9, 16)
    q, k, v = layer._project(x, None, x.shape[1], keys=True)
    mask = torch.zeros(9, 9).masked_fill(~layer.pattern.mask(9, 9), -torch.inf)[None, None]
    expected, _ = eager_attention_forward(module.eval(), q, k, v, mask, scaling=4**-0.5, dropout=0.0)
    torch.testing.assert_close(layer(x), F.linear(expected.flatten(2), layer.o_proj), rtol=1e-5, atol=1e-5)


def test_softcap_reaches_the_scores() -> None:
    layer = SelfAttention(8, 2, softcap=0.5)
    x = torch.randn(1, 6, 8) * 4
    q, k, v = layer._project(x, None, x.shape[1], keys=True)
    scores = 0.5 * torch.tanh(q @ k.mT * 4**-0.5 / 0.5)
    weights = torch.softmax(scores.masked_fill(~Causal().mask(6, 6), -torch.inf), dim=-1)
    torch.testing.assert_close(layer(x), F.linear((weights @ v).transpose(1, 2).flatten(2), layer.o_proj))


def test_dropout_is_for_training_only() -> None:
    layer = SelfAttention(8, 2, dropout_p=0.5)
    x = torch.randn(1, 30, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


SELECTIONS = [
    MoBA(block=4, top_k=2),
    NativeSparse(block=4, top_k=3, compress_block=4, stride=2, window=5, local=1),
    NativeSparse(4, 3, 4, 2, 5, local=1, compress_hidden_dim=6, separate_kv=True),
]


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
@pytest.mark.parametrize("chunks", [[1] * 15, [6, 1, 8]], ids=str)
def test_blocks_chosen_by_content_decode_as_the_whole(selection: MoBA | NativeSparse, chunks: list[int]) -> None:
    layer = SelfAttention(8, 4, 2, 4, selection, RotaryEmbedding(4)).double()
    x, cache = torch.randn(2, 15, 8, dtype=torch.float64), KeyValueCache()
    parts = [layer(part, cache) for part in x.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), layer(x), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="KeyValueCache"):
        rolling = RollingCache(4)
        for part in x.split(5, dim=1):
            layer(part, rolling)


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_blocks_chosen_by_content_are_causal_and_train(selection: MoBA | NativeSparse) -> None:
    layer = SelfAttention(8, 4, 2, 4, selection, RotaryEmbedding(4))
    x = torch.randn(1, 15, 8, requires_grad=True)
    layer(x)[:, 6].sum().backward()
    assert x.grad is not None and not x.grad[:, 7:].any() and x.grad[:, :7].any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert sum(part.needed for part in layer.work(15)) > 0


def test_decoding_over_a_rolling_cache_is_the_whole_forward() -> None:
    pattern = Causal() & (SlidingWindow(4) | Sinks(2))
    layer = SelfAttention(8, 4, 2, 4, pattern, RotaryEmbedding(4), sinks=True, qk_norm=True).double()
    torch.nn.init.normal_(layer.sink_logits)  # type: ignore[arg-type]
    x, cache = torch.randn(2, 19, 8, dtype=torch.float64), RollingCache(4, sinks=2)
    parts = [layer(part, cache) for part in x.split([3] + [1] * 16, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), layer(x), rtol=0, atol=1e-12)
    assert cache.held() <= 6


def test_work_is_the_projections_and_the_visible_pairs() -> None:
    pattern = Causal() & SlidingWindow(3)
    projections, scores = SelfAttention(12, heads=4, kv_heads=2, head_dim=5, pattern=pattern).work(10)
    assert projections.kind == "attention"
    assert projections.needed == projections.computed == 10 * (12 * (4 + 2 + 2) * 5 + 4 * 5 * 12)
    assert scores == attention_work(pattern, 10, 4, 5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dim": 0}, "dim=0"),
        ({"heads": 0}, "heads=0"),
        ({"kv_heads": 0}, "kv_heads=0"),
        ({"kv_heads": 3}, "heads=4: it must be a multiple of kv_heads=3"),
        ({"heads": 5}, "heads=5: it must be a divisor of dim=12"),
        ({"head_dim": 0}, "head_dim=0"),
        ({"rope": RotaryEmbedding(4)}, r"rope\.head_dim=4: it must be head_dim=3"),
        ({"softcap": 0.0}, r"softcap=0\.0"),
        ({"dropout_p": 1.0}, r"dropout_p=1\.0"),
        ({"pattern": MoBA(4, 2), "dropout_p": 0.1}, r"dropout_p=0\.1: it must be 0 with MoBA"),
        ({"pattern": MoBA(4, 2), "global_projections": True}, "global_projections=True"),
        ({"pattern": NativeSparse(), "sinks": True}, "softcap and sinks"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SelfAttention(**{"dim": 12, "heads": 4, **settings})
