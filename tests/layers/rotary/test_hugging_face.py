"""Configs of real models of Hugging Face, and their rotations: vectors where the layouts agree, scores everywhere."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from toolkit.layers import LongRoPEScaling, ProportionalScaling, RotaryEmbedding, YaRNScaling
from toolkit.layers.rotary.model_types import INTERLEAVED

YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 40.0, "original_max_position_embeddings": 4096}


def model(name: str) -> Any:
    """transformers' module of modeling code."""
    return importlib.import_module(f"transformers.models.{name}.modeling_{name}")


def config(model_type: str, **settings: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(model_type, **settings)


def queries_and_keys(head_dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q (2, 4, 33, head_dim), k (2, 2, 33, head_dim), and positions (2, 33), each row its own."""
    positions = torch.stack([torch.arange(5, 38), torch.arange(33) % 7 + 900])
    return torch.randn(2, 4, 33, head_dim), torch.randn(2, 2, 33, head_dim), positions


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 500_000.0},
        YARN,
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_vectors_and_scores_are_llamas_and_qwens(name: str, rope: dict[str, Any]) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 512}
    theirs, code = config(name, **sizes, rope_parameters=rope), model(name)
    rotary = getattr(code, {"llama": "LlamaRotaryEmbedding", "qwen2": "Qwen2RotaryEmbedding"}[name])(theirs)
    q, k, positions = queries_and_keys(16)
    expected = code.apply_rotary_pos_emb(q, k, *rotary(q, positions))
    mine = RotaryEmbedding.from_hf(theirs)(q, k, positions, seq_len=int(positions.max()) + 1)
    for ours, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=2e-5)
    torch.testing.assert_close(mine[0][:, :2] @ mine[1].mT, expected[0][:, :2] @ expected[1].mT, rtol=0, atol=2e-4)


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 10_000.0}, YARN])
def test_scores_are_deepseeks_whose_vectors_lie_in_the_other_layout(rope: dict[str, Any]) -> None:
    theirs, code = config("deepseek_v3", qk_rope_head_dim=16, rope_parameters=rope), model("deepseek_v3")
    mine = RotaryEmbedding.from_hf(theirs)
    assert mine.interleaved and mine.head_dim == 16
    q, k, positions = queries_and_keys(16)
    expected = code.apply_rotary_pos_emb_interleave(q, k, *code.DeepseekV3RotaryEmbedding(theirs)(q, positions))
    ours = mine(q, k, positions)
    torch.testing.assert_close(ours[0][:, :2] @ ours[1].mT, expected[0][:, :2] @ expected[1].mT, rtol=0, atol=2e-4)
    for one, other in zip(ours, expected, strict=True):  # pairs (2k, 2k + 1) come out as (k, k + d / 2)
        torch.testing.assert_close(torch.cat([one[..., 0::2], one[..., 1::2]], -1), other, rtol=0, atol=2e-5)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
def test_vectors_are_gpt_neoxs_partial_ones(fraction: float) -> None:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": fraction}
    theirs, code = config("gpt_neox", hidden_size=64, num_attention_heads=4, rope_parameters=rope), model("gpt_neox")
    q, k, positions = queries_and_keys(16)
    expected = code.apply_rotary_pos_emb(q, k, *code.GPTNeoXRotaryEmbedding(theirs)(q, positions))
    for ours, other in zip(RotaryEmbedding.from_hf(theirs)(q, k, positions), expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "rotary"),
    [
        ("cohere", "CohereRotaryEmbedding"),
        ("glm", "GlmRotaryEmbedding"),
        ("ernie4_5", "Ernie4_5RotaryEmbedding"),
        ("helium", "HeliumRotaryEmbedding"),
        ("qwen3", "Qwen3RotaryEmbedding"),
        ("phi3", "Phi3RotaryEmbedding"),
    ],
)
def test_scores_are_those_of_models_in_either_layout(name: str, rotary: str) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    theirs, code = config(name, **sizes, **({} if name == "phi3" else {"head_dim": 16})), model(name)
    q, k, positions = queries_and_keys(16)
    expected = code.apply_rotary_pos_emb(q, k, *getattr(code, rotary)(theirs)(q, positions))
    mine = RotaryEmbedding.from_hf(theirs)
    assert mine.interleaved == (name in INTERLEAVED)
    ours = mine(q, k, positions)
    torch.testing.assert_close(ours[0][:, :2] @ ours[1].mT, expected[0][:, :2] @ expected[1].mT, rtol=0, atol=2e-4)


def test_gemma3_has_two_embeddings_whatever_wrote_its_config() -> None:
    linear = {"rope_type": "linear", "factor": 8.0}
    old = {"model_type": "gemma3_text", "head_dim": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    old["rope_scaling"] = linear
    new = config("gemma3_text", rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling=linear)
    expected = model("gemma3").Gemma3RotaryEmbedding(new)
    for written in (old, new, new.to_dict(), {"text_config": old}, config("gemma3", text_config=new.to_dict())):
        for layer_type, base in (("full_attention", 1e6), ("sliding_attention", 1e4)):
            mine = RotaryEmbedding.from_hf(written, layer_type)
            assert mine.base == base
            inv_freq = getattr(expected, f"{layer_type}_inv_freq")
            torch.testing.assert_close(mine.frequencies(1)[0], inv_freq, rtol=1e-6, atol=0)
        for absent in (None, "linear_attention"):
            with pytest.raises(ValueError, match=f"layer_type={absent!r}: it must be one of .*: this config's layers"):
                RotaryEmbedding.from_hf(written, absent)


@pytest.mark.parametrize("layers", [6, 12])  # from eleven on, a file numbers them 00, 01, ...
def test_gemma4s_layers_differ_in_width_too(layers: int) -> None:
    new = config("gemma4_text", num_hidden_layers=layers)
    expected = model("gemma4").Gemma4TextRotaryEmbedding(new)
    first = {**new.to_dict(), "global_head_dim": 512}
    del first["per_layer_config"]
    for written in (new, new.to_dict(), first):
        for layer_type, head_dim in (("full_attention", 512), ("sliding_attention", 256)):
            mine = RotaryEmbedding.from_hf(written, layer_type)
            assert mine.head_dim == head_dim
            assert isinstance(mine.scaling, ProportionalScaling) == (layer_type == "full_attention")
            inv_freq = getattr(expected, f"{layer_type}_inv_freq")
            torch.testing.assert_close(mine.frequencies(1)[0], inv_freq, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rope_type", ["longrope", "su", "yarn"])
def test_phi3s_original_length_stands_beside_the_rope_fields(rope_type: str) -> None:
    scaling = {"type": rope_type, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    old = {"model_type": "phi3", "hidden_size": 3072, "num_attention_heads": 32, "rope_theta": 10_000.0}
    old |= {"max_position_embeddings": 131_072, "original_max_position_embeddings": 4096, "rope_scaling": scaling}
    expected = LongRoPEScaling([1.0] * 48, [2.0] * 48, 4096, 32.0)
    assert RotaryEmbedding.from_hf(old).scaling == expected
    if rope_type == "su":  # transformers 5.23 has dropped it
        return
    settings = {name: value for name, value in old.items() if name != "model_type"}
    new = config("phi3", **{**settings, "rope_scaling": dict(scaling)})
    assert RotaryEmbedding.from_hf(new).scaling == RotaryEmbedding.from_hf(new.to_dict()).scaling == expected


def test_gpt_oss_does_not_truncate() -> None:
    assert RotaryEmbedding.from_hf(config("gpt_oss")).scaling == YaRNScaling(32.0, 4096, 32.0, 1.0, truncate=False)


def test_gpt_neox_and_gpt_j_have_names_of_their_own() -> None:
    old = {"model_type": "gpt_neox", "hidden_size": 64, "num_attention_heads": 4, "rotary_emb_base": 500.0}
    mine = RotaryEmbedding.from_hf({**old, "rotary_pct": 0.5})
    assert (mine.head_dim, mine.base, mine.fraction) == (16, 500.0, 0.5)
    assert RotaryEmbedding.from_hf(old).fraction == 0.25
    for written in (config("gptj"), config("gptj").to_dict()):
        mine = RotaryEmbedding.from_hf(written)
        assert (mine.head_dim, mine.base, mine.rotary_dim, mine.interleaved) == (256, 10_000.0, 64, True)


@pytest.mark.parametrize("model_type", ["jetmoe", "zamba2", "dbrx"])
def test_a_file_may_call_sizes_by_the_models_own_names(model_type: str) -> None:
    new = config(model_type)
    written = {"rope_theta": 1e4, **new.to_dict()}
    expected = RotaryEmbedding.from_hf(new) if model_type != "dbrx" else RotaryEmbedding(128)
    assert RotaryEmbedding.from_hf(written).head_dim == expected.head_dim


@pytest.mark.parametrize(("rotary_dim", "head_dim"), [(2, 98), (6, 98), (64, 128), (82, 94), (94, 94)])
def test_a_rotary_dim_is_kept_exactly(rotary_dim: int, head_dim: int) -> None:
    written = {"head_dim": head_dim, "rotary_dim": rotary_dim, "rope_theta": 1e4}
    assert RotaryEmbedding.from_hf(written).rotary_dim == rotary_dim


@pytest.mark.parametrize("scales", [{}, {"mscale": 1.0, "mscale_all_dim": 1.0}, {"mscale_all_dim": 0.707}])
def test_deepseeks_softmax_scale_multiplier(scales: dict[str, float]) -> None:
    rope = {**YARN, **scales}
    expected = model("deepseek_v3").yarn_apply_mscale(rope, 1.0)
    theirs = config("deepseek_v3", rope_parameters=dict(rope))
    without = {name: value for name, value in theirs.to_dict().items() if name not in ("head_dim", "rope_interleave")}
    for written in (theirs, theirs.to_dict(), without):
        mine = RotaryEmbedding.from_hf(written)
        assert mine.softmax_scale_multiplier == pytest.approx(expected, rel=1e-12)
        assert (mine.head_dim, mine.interleaved) == (64, True)
    # Models without latent attention leave their softmax alone.
    assert RotaryEmbedding.from_hf(config("llama", rope_parameters=dict(rope))).softmax_scale_multiplier == 1.0


@pytest.mark.parametrize("name", ["mistral4", "deepseek_v2", "glm4_moe_lite"])
def test_latent_attention_rotates_dims_of_their_own(name: str) -> None:
    theirs = config(name)
    for written in (theirs, theirs.to_dict()):
        mine = RotaryEmbedding.from_hf(written)
        assert mine.head_dim == mine.rotary_dim == theirs.qk_rope_head_dim
        assert mine.interleaved


def test_a_flat_config_is_the_same_for_every_layer_type() -> None:
    written = {"head_dim": 8, "rope_theta": 123.0}
    assert RotaryEmbedding.from_hf(written, "full_attention").base == RotaryEmbedding.from_hf(written).base == 123.0


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ({"rope_theta": 1e4}, "head_dim=None.*hidden_size and num_attention_heads"),
        ({"rope_theta": 1e4, "hidden_size": 64}, "head_dim=None"),
        ({"head_dim": 8}, "rope_theta=None: it must be given"),
        ({"head_dim": 7, "rope_theta": 1e4}, "head_dim=7"),
        ({"rope_theta": 1e4, "hidden_size": 64, "num_attention_heads": (2, 4)}, "head_dim=None"),
        ({"rope_theta": 1e4, "hidden_size": 64, "num_attention_heads": 0}, "head_dim=None"),
        ({"head_dim": 8, "rope_theta": -1.0}, "base=-1"),
        ({"head_dim": 8, "rope_theta": 10**400}, "rope_theta=10*: it must be a number"),
        ({"head_dim": 8, "rope_theta": "large"}, "rope_theta='large': it must be a number"),
        ({"head_dim": 8, "rope_theta": 1e4, "partial_rotary_factor": 0.4}, "fraction=0.4"),
        ({"head_dim": 8, "rope_parameters": {"full_attention": None, "sliding_attention": {}}}, "layer_type=None"),
    ],
)
def test_what_is_wrong_in_a_config_is_named(written: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RotaryEmbedding.from_hf(written)
