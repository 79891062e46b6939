"""muP: the standard model at its base width; elsewhere variances, rates and logits by Yang et al.'s tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from toolkit.compute import cost
from toolkit.layers import MoE
from toolkit.models import (
    AttentionConfig,
    BlockConfig,
    Decoder,
    DecoderConfig,
    FeedForwardConfig,
    MoEConfig,
    save_hf,
    upcycle,
)
from toolkit.models.hf_config import read_config, write_config
from toolkit.models.mup import learning_rate_factors, width_ratio

BASE, VOCAB = 32, 40
NSA = "NativeSparse(block=4, top_k=4, compress_block=4, stride=2, window=4, compress_hidden_dim=16)"
GLOBAL = "Causal() | GlobalTokens(positions=[0])"
NOISY = "TopKRouter(noise=NoisyTopK(), bias=True)"


def blocks(dim: int) -> dict[str, BlockConfig]:
    """Layers with every kind of parameter, as wide as ``dim``."""
    attention, dense = AttentionConfig(heads=dim // 16, qk_norm=True, sinks=True), FeedForwardConfig(2 * dim)
    moe = MoEConfig(dim, num_experts=4, top_k=2, shared_experts=1, shared_gate=True, constant_experts=1, bias=True)
    noisy = MoEConfig(dim, num_experts=4, top_k=2, router=NOISY)
    plain = AttentionConfig(heads=dim // 16)
    return {
        "dense": BlockConfig(attention, dense),
        "gelu": BlockConfig(plain, FeedForwardConfig(2 * dim, "gelu", bias=True)),
        "moe": BlockConfig(attention, moe),
        "noisy": BlockConfig(plain, noisy),
        "depths": BlockConfig(plain, dense, depth_capacity=0.5),
        "native sparse": BlockConfig(replace(plain, pattern=NSA), dense),
        "global rows": BlockConfig(replace(plain, pattern=GLOBAL, global_projections=True), dense),
    }


def factors_of(model: Decoder) -> dict[str, float]:
    return learning_rate_factors(model, model.config)


def config(dim: int, mup_base_dim: int | None = BASE, tied_head: bool = False, *kinds: str) -> DecoderConfig:
    layers = blocks(dim)
    chosen = tuple(layers[kind] for kind in kinds or layers)
    return DecoderConfig(VOCAB, dim, chosen, tied_head, mup_base_dim=mup_base_dim)


def decoder(dim: int, mup_base_dim: int | None = BASE, tied_head: bool = False, *kinds: str) -> Decoder:
    torch.manual_seed(0)
    return Decoder(config(dim, mup_base_dim, tied_head, *kinds))


EXPECTED = {
    "hidden": {
        *("attention.qkv_proj", "attention.o_proj", "attention.core.qkv_proj", "attention.core.branches.gate_proj"),
        *("feed_forward.gate_up_proj", "feed_forward.up_proj", "feed_forward.down_proj", "experts.gate_up_proj"),
        *("experts.down_proj", "shared.gate_up_proj", "shared.down_proj", "router.predictor_up"),
    },
    "output": {
        *("router.weight", "router.noise.weight", "shared_gate.weight", "zero_experts.mix", "router.predictor_down"),
    },
}


def of(kind: str, name: str) -> bool:
    return any(name.endswith(f".{end}") for end in EXPECTED[kind])


def test_the_layers_here_have_every_kind_of_parameter() -> None:
    names = [name for name, _ in decoder(64).named_parameters()]
    for ends in EXPECTED.values():
        for end in ends:
            assert any(name.endswith(f".{end}") for name in names), end


@pytest.mark.parametrize("tied_head", [True, False])
def test_at_its_base_width_it_is_the_standard_model_bit_for_bit(tied_head: bool) -> None:
    mup, standard = decoder(BASE, BASE, tied_head), decoder(BASE, None, tied_head)
    for (name, ours), theirs in zip(mup.named_parameters(), standard.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert set(learning_rate_factors(mup, mup.config).values()) == {1.0}
    plain = ("dense", "moe")  # deterministic in training
    mup, standard = decoder(BASE, BASE, tied_head, *plain), decoder(BASE, None, tied_head, *plain)
    tokens = torch.randint(VOCAB, (2, 12))
    ours, theirs = (model(tokens).logits for model in (mup, standard))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dim", [16, 64, 128])
def test_rates_fall_with_the_width_where_the_fan_in_grows(dim: int) -> None:
    model = decoder(dim)
    factors = learning_rate_factors(model, model.config)
    assert list(factors) == [name for name, _ in model.named_parameters()]
    for name, factor in factors.items():
        assert factor == (BASE / dim if of("hidden", name) or of("output", name) else 1.0), name


def test_without_mup_all_rates_are_one() -> None:
    assert set(factors_of(decoder(64, None)).values()) == {1.0}


def test_the_sides_that_grow_are_those_that_the_rule_says() -> None:
    """The tables' own criterion, read off two widths: which of a matrix's sides the width changes."""
    narrow, wide = (dict(decoder(dim).named_parameters()) for dim in (128, 256))
    for name, factor in factors_of(decoder(128)).items():
        one, two = narrow[name].shape, wide[name].shape
        grows = len(one) >= 2 and two[-1] > one[-1] and name not in ("embedding.weight", "head.weight")
        # one row an expert, channel by channel: these are vectors in a table
        vectors = name.endswith(("_bias", "zero_experts.constant"))
        assert factor == (BASE / 128 if grows and not vectors else 1.0), name


@pytest.mark.parametrize("tied_head", [True, False])
def test_every_matrix_starts_with_the_standard_deviation_of_its_kind(tied_head: bool) -> None:
    dim, mup, standard = 128, decoder(128, BASE, tied_head), decoder(128, None, tied_head)
    for (name, ours), theirs in zip(mup.named_parameters(), standard.parameters(), strict=True):
        if name in ("embedding.weight", "head.weight"):
            assert float(ours.detach().std()) == pytest.approx(BASE**-0.5, rel=4 / (2 * ours.numel()) ** 0.5)
        elif of("output", name):
            torch.testing.assert_close(ours, theirs * (BASE / dim) ** 0.5)
        else:
            assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("dim", [16, 128])
def test_logits_are_times_the_base_width_over_the_width(dim: int, tied_head: bool) -> None:
    mup = decoder(dim, BASE, tied_head, "dense")
    standard = Decoder(replace(mup.config, mup_base_dim=None))
    standard.load_state_dict(mup.state_dict())
    tokens = torch.randint(VOCAB, (2, 12))
    torch.testing.assert_close(mup(tokens).logits, standard(tokens).logits * BASE / dim)
    assert width_ratio(mup.config) == BASE / dim


def test_a_cache_has_the_same_logits() -> None:
    model = decoder(64, BASE, True, "dense", "moe").eval()
    prompt = torch.randint(VOCAB, (1, 6))
    longer = model.generate(prompt, 4, temperature=0)
    with torch.no_grad():
        assert torch.equal(model(longer[:, :-1]).logits[:, 5:].argmax(-1), longer[:, 6:])


def test_it_costs_what_the_standard_model_costs() -> None:
    plain = ("dense", "moe")
    assert cost(config(128, BASE, True, *plain), 64) == cost(config(128, None, True, *plain), 64)


def test_a_layer_that_no_rule_is_known_for_is_refused() -> None:
    soft = BlockConfig(AttentionConfig(heads=2), MoEConfig(32, 4, 2, router="SoftRouter(slots=2)", causal=False))
    settings = DecoderConfig(VOCAB, 32, (soft,), mup_base_dim=BASE)
    with pytest.raises(ValueError, match=r"mup_base_dim=32: it must be None with a parameter '.*router\.scale'"):
        Decoder(settings)
    assert isinstance(Decoder(replace(settings, mup_base_dim=None)).blocks[0].feed_forward, MoE)


@pytest.mark.parametrize("base", [0, -4])
def test_the_base_width_is_positive(base: int) -> None:
    with pytest.raises(ValueError, match=f"mup_base_dim={base}: it must be positive, or None"):
        config(32, base)


def test_it_is_plain_data_and_left_out_where_there_was_none() -> None:
    settings = config(64, BASE, True, "dense")
    assert DecoderConfig.from_dict(settings.to_dict()) == settings
    values = settings.to_dict()
    del values["mup_base_dim"]
    assert DecoderConfig.from_dict(values) == replace(settings, mup_base_dim=None)


def exported(dim: int, mup_base_dim: int | None) -> DecoderConfig:
    block = BlockConfig(AttentionConfig(heads=dim // 16), FeedForwardConfig(2 * dim))
    return DecoderConfig(VOCAB, dim, (block,), mup_base_dim=mup_base_dim)


def test_hugging_face_s_words_have_no_multiplier_so_another_width_than_the_base_is_refused(tmp_path: Path) -> None:
    settings, named = exported(64, 32), r"decoder\.config\.mup_base_dim=32: it must be None, or dim=64, in a Llama"
    with pytest.raises(ValueError, match=named):
        write_config(settings)
    pytest.importorskip("safetensors.torch")
    with pytest.raises(ValueError, match=named):
        save_hf(Decoder(settings), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_at_the_base_width_hugging_face_s_words_lack_nothing() -> None:
    settings = exported(32, 32)
    assert read_config(write_config(settings)) == replace(settings, mup_base_dim=None)


def test_an_upcycled_router_starts_as_one_that_was_built_does() -> None:
    routers = []
    for base in (None, 16):
        dense = Decoder(
            DecoderConfig(VOCAB, 64, (BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(64)),), mup_base_dim=base)
        )
        routers.append(upcycle(dense, num_experts=4, seed=3).blocks[0].feed_forward.router.weight)
    assert torch.allclose(routers[1], routers[0] / 2)
