"""Parameters and FLOPs against a real model, a count by hand, another library's model and published figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from compute_cases import CONFIGS, DENSE, DIM, MOE, VOCAB, WINDOW, decoder_config
from torch.utils.flop_counter import FlopCounterMode

from toolkit.attention import parse_pattern
from toolkit.attention.cost import TILE
from toolkit.compute import CONVENTIONS, cost
from toolkit.compute.cost import KINDS
from toolkit.layers import MoE
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig

KIND_OF_NAME = {
    "embedding": "embedding",
    "head": "head",
    "attention.": "attention",
    "feed_forward.gate_up_proj": "feed_forward",
    "feed_forward.down_proj": "feed_forward",
    "experts.": "experts",
    "shared.": "shared_experts",
    "router.": "router",
    "norm": "norms",
}
"""The kind of a parameter, by a part of its name; the first that is in it decides, norms before all."""


def kind_of(name: str) -> str:
    if "norm" in name:
        return "norms"
    return next(kind for part, kind in KIND_OF_NAME.items() if part in name)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_parameters_by_kind_are_those_of_the_real_model(config: DecoderConfig) -> None:
    expected: Counter[str] = Counter()
    for name, parameter in Decoder(config).named_parameters():  # yields a shared matrix once
        expected[kind_of(name)] += parameter.numel()
    price = cost(config, 16)
    assert price.parameters == dict(expected)
    assert price.total_parameters == sum(parameter.numel() for parameter in Decoder(config).parameters())
    assert set(price.parameters) <= set(KINDS)


def test_every_kind_is_counted_apart() -> None:
    assert set(cost(CONFIGS["mixed"], 16).parameters) == set(KINDS)


def test_active_parameters_by_hand() -> None:
    moe = MoEConfig(hidden_dim=24, num_experts=8, top_k=3, shared_experts=2)
    block = BlockConfig(AttentionConfig(heads=4, kv_heads=2), moe)
    price = cost(DecoderConfig(VOCAB, DIM, (block, DENSE), tied_head=False), 16)
    expert = 3 * 24 * DIM
    assert price.active_parameters == {
        "embedding": VOCAB * DIM,
        "head": VOCAB * DIM,
        "attention": (4 + 2 * 2 + 4) * 8 * DIM + 4 * DIM * DIM,
        "feed_forward": 3 * 64 * DIM,
        "experts": 3 * expert,
        "shared_experts": 2 * expert,
        "router": 8 * DIM,
        "norms": 5 * DIM,
    }
    assert price.total_parameters - price.total_active_parameters == (8 - 3) * expert


@pytest.mark.parametrize("name", ["dense", "untied", "window", "grouped"])
def test_a_dense_model_uses_all_its_parameters(name: str) -> None:
    price = cost(CONFIGS[name], 16)
    assert price.active_parameters == price.parameters


def test_a_token_s_experts_alone_get_gradient() -> None:
    config = decoder_config(BlockConfig(AttentionConfig(heads=2), MoEConfig(24, 8, 2, balance=0, z_loss=0)))
    decoder = Decoder(config)
    decoder(torch.tensor([[3]])).logits.sum().backward()
    (moe,) = (module for module in decoder.modules() if isinstance(module, MoE))
    used = 0
    for weight in moe.experts.parameters():
        assert weight.grad is not None
        used += int(weight.grad.flatten(1).any(dim=1).sum()) * weight[0].numel()
    assert used == cost(config, 1).active_parameters["experts"]


def test_nanogpt_s_published_figures() -> None:
    # transformer_sizing.ipynb of karpathy/nanoGPT, GPT-2 124M without biases at 1024 tokens, forward and
    # backward of one sequence: 124,337,664 parameters, "palm_flops: 879894724608, flops: 874944921600".
    # A SwiGLU of 8/3 dim has as many weights as its MLP of 4 dim, and RMSNorm as many as its LayerNorm.
    positions = 1024 * 768  # its position embedding; ours rotates
    block = BlockConfig(AttentionConfig(heads=12), FeedForwardConfig(2048))
    price = cost(DecoderConfig(vocab_size=50257, dim=768, blocks=(block,) * 12), 1024)
    assert price.total_parameters == 124_337_664 - positions
    assert 1024 * price.training_flops["palm"] == 879_894_724_608 - 1024 * 6 * positions
    assert 1024 * price.training_flops["full_square"] == 874_944_921_600


def test_palm_counts_active_parameters_and_the_full_square_by_hand() -> None:
    block = BlockConfig(AttentionConfig(heads=2, head_dim=24, pattern=WINDOW), MoEConfig(24, 8, 2))
    price = cost(decoder_config(block, block, block), 100)
    scores = 12 * 3 * 2 * 24 * 100  # 12 L H Q T, Chowdhery et al. 2022
    assert price.training_flops["palm"] == 6 * price.total_active_parameters + scores
    assert price.forward_flops["palm"] == 2 * price.total_active_parameters + scores / 3


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_hugging_face_s_llama_counted_whole_is_the_full_square(kv_heads: int, tied_head: bool) -> None:
    transformers = pytest.importorskip("transformers")
    length, layers, hidden = 24, 2, 40
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=DIM,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            tie_word_embeddings=tied_head,
            attn_implementation="eager",
        )
    )
    tokens = torch.randint(VOCAB, (1, length))
    with FlopCounterMode(display=False) as forward:
        logits = llama(tokens).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    block = BlockConfig(AttentionConfig(heads=4, kv_heads=kv_heads), FeedForwardConfig(hidden))
    price = cost(DecoderConfig(VOCAB, DIM, (block,) * layers, tied_head), length)
    run = forward.get_total_flops()
    assert length * price.forward_flops["full_square"] == pytest.approx(run, rel=1e-9)
    assert length * price.training_flops["full_square"] == pytest.approx(run + backward.get_total_flops(), rel=1e-9)


@pytest.mark.parametrize("seq_len", [1, 100, 128, 300])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_is_run_is_never_less_than_what_is_needed(config: DecoderConfig, seq_len: int) -> None:
    price = cost(config, seq_len)
    for flops in (price.forward_flops, price.training_flops):
        assert set(flops) == set(CONVENTIONS)
        assert flops["exact"] <= flops["hardware"] * (1 + 1e-12)
        assert flops["exact"] <= flops["full_square"] * (1 + 1e-12)


@pytest.mark.parametrize("pattern", ["Causal()", "Full()", WINDOW, "SlidingWindow(150)"])
@pytest.mark.parametrize("seq_len", [1, 127, 300])
def test_hardware_s_scores_are_the_tiles_that_hold_every_visible_pair(pattern: str, seq_len: int) -> None:
    heads, head_dim = 2, 16
    block = BlockConfig(AttentionConfig(heads=heads, pattern=pattern), FeedForwardConfig(8))
    price = cost(decoder_config(block), seq_len)
    mask = parse_pattern(pattern).mask(seq_len, seq_len).reshape(seq_len, seq_len)
    pairs = 0
    for rows in mask.split(TILE[0]):
        pairs += TILE[0] * TILE[1] * sum(bool(tile.any()) for tile in rows.split(TILE[1], dim=1))
    difference = price.forward_flops["hardware"] - price.forward_flops["exact"]
    masked = pairs - int(mask.sum())
    assert seq_len * difference == pytest.approx(2 * heads * 2 * head_dim * masked, abs=1e-3)
    # nine products for a forward and backward: scores and their values; scores and dP again in each of the two
    # kernels of the backward pass, and three gradients
    products = price.training_flops["hardware"] - price.training_flops["exact"]
    expected = heads * head_dim * 2 * (9 * pairs - 6 * int(mask.sum()))
    assert seq_len * products == pytest.approx(expected, abs=1e-3)


def test_a_window_saves_only_scores() -> None:
    windowed = BlockConfig(AttentionConfig(heads=2, pattern=WINDOW), FeedForwardConfig(64))
    dense, window = cost(decoder_config(DENSE), 200), cost(decoder_config(windowed), 200)
    saved_pairs = 200 * 201 // 2 - (7 * 8 // 2 + 193 * 7)
    saved = dense.training_flops["exact"] - window.training_flops["exact"]
    assert 200 * saved == pytest.approx(6 * 2 * DIM * saved_pairs)
    assert dense.training_flops["full_square"] == window.training_flops["full_square"]
    assert dense.parameters == window.parameters


def test_a_head_s_matrix_is_work_whether_tied_or_not() -> None:
    tied, untied = cost(decoder_config(MOE), 20), cost(decoder_config(MOE, tied_head=False), 20)
    assert tied.training_flops["exact"] == untied.training_flops["exact"]
    assert untied.total_parameters - tied.total_parameters == VOCAB * DIM


@pytest.mark.parametrize("seq_len", [0, -4])
def test_a_length_must_be_positive(seq_len: int) -> None:
    with pytest.raises(ValueError, match=f"seq_len={seq_len}: it must be positive"):
        cost(CONFIGS["dense"], seq_len)


@pytest.mark.parametrize(
    "router", [None, "TopKRouter(noise=NoisyTopK(), bias=True)", "HashRouter(top_k=2)", "SinkhornRouter()"]
)
def test_every_parameter_is_of_a_known_kind(router: str | None) -> None:
    moe = MoEConfig(24, 4, 2, shared_experts=1, router=router, constant_experts=1, shared_gate=True, bias=True)
    price = cost(decoder_config(BlockConfig(AttentionConfig(heads=2), moe, depth_capacity=0.5)), 8)
    assert set(price.parameters) <= set(KINDS)
    assert price.parameters["router"] > 0 or router == "HashRouter(top_k=2)"


@pytest.mark.parametrize("moe", [FeedForwardConfig(64), MoEConfig(24, num_experts=4, top_k=2)])
def test_a_layer_that_some_tokens_go_through_is_active_for_their_share(moe: FeedForwardConfig | MoEConfig) -> None:
    block = BlockConfig(AttentionConfig(heads=2), moe)
    full, some = (cost(decoder_config(one), 8) for one in (block, replace(block, depth_capacity=0.25)))
    for kind in ("attention", "feed_forward", "experts"):
        assert some.active_parameters.get(kind, 0) == full.active_parameters.get(kind, 0) / 4
        assert some.parameters.get(kind, 0) == full.parameters.get(kind, 0)
