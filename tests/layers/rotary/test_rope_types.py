"""Every rope type of transformers, over random configs in the old and the new style, against its own functions."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from toolkit.layers import RotaryEmbedding

CONFIGS = 80
TYPES = ["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"]


def draw(kind: str, rng: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sizes of a model, and its rope parameters in the new style."""
    head_dim = rng.choice([8, 12, 16, 48, 64, 80, 96, 128, 256])
    length = rng.choice([256, 1000, 2048, 4096, 8192, 32768])
    factor = rng.choice([1.0, 1.5, 2, 4.0, 8, 32.0, 40, 64.0, round(rng.uniform(1, 64), 3)])
    sizes = {"head_dim": head_dim, "hidden_size": 256, "num_attention_heads": 4}
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": rng.choice([1e4, 5e5, 1e6, 1e7, rng.uniform(1e3, 1e7)])}
    fractions = [p for p in (0.25, 0.4, 0.5, 0.75, 1.0) if int(head_dim * p) % 2 == 0 and int(head_dim * p) > 2]
    rope["partial_rotary_factor"] = fraction = rng.choice(fractions)
    longer = int(length * factor)
    sizes["max_position_embeddings"] = length if kind == "dynamic" else max(longer, length + 1)
    if kind not in ("default", "longrope") or rng.random() < 0.5:
        rope["factor"] = factor
    if kind in ("yarn", "longrope", "llama3"):
        rope["original_max_position_embeddings"] = length
    if kind == "llama3":
        rope["low_freq_factor"] = low = rng.choice([1, 1.0, rng.uniform(0.5, 3)])
        rope["high_freq_factor"] = low + rng.choice([3, rng.uniform(0.5, 30)])
    if kind == "longrope":
        pairs = int(head_dim * fraction) // 2
        rope["short_factor"], rope["long_factor"] = ([rng.uniform(0.9, top) for _ in range(pairs)] for top in (2, 64))
    if kind == "yarn":
        optional = {
            "beta_fast": rng.choice([32, 24.0, 64, None]),
            "beta_slow": rng.choice([1, 2.0, 0.5, None]),
            "truncate": rng.random() < 0.5,
            "mscale": rng.choice([0.707, 1.0, 0]),
            "mscale_all_dim": rng.choice([0.707, 1, 0.3]),
        }
        rope |= {name: value for name, value in optional.items() if rng.random() < 0.6}
        if rng.random() < 0.2:
            rope["factor"] = None  # then it is max / original
    if kind in ("yarn", "longrope") and rng.random() < 0.3:
        rope["attention_factor"] = rng.choice([1.0, 1.2, 0.5])
    return sizes, rope


def as_config(style: str, sizes: dict[str, Any], rope: dict[str, Any]) -> Any:
    """What from_hf is given: an object or a dict, in the new or the old style."""
    from transformers import LlamaConfig

    if style == "new object":
        return LlamaConfig(**sizes, rope_parameters=dict(rope))
    if style == "new dict":
        return {**sizes, "rope_parameters": dict(rope)}
    if style == "saved dict":
        return as_config("new object", sizes, rope).to_dict()
    beside = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor")}
    inside = {name: value for name, value in rope.items() if name not in beside}
    old = {**sizes, **beside, "rope_scaling": inside if inside["rope_type"] != "default" else None}
    if style == "old object":
        return LlamaConfig(**old)
    if old["rope_scaling"] is not None:  # the oldest name
        inside["type"] = inside.pop("rope_type")
    return old


def theirs(kind: str, config: Any, seq_len: int) -> tuple[torch.Tensor, float]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

    if kind == "default":  # GPT-NeoX's reads the fraction
        return GPTNeoXRotaryEmbedding.compute_default_rope_parameters(config)
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=seq_len)


@pytest.mark.parametrize("kind", TYPES)
def test_frequencies_are_transformers_over_random_configs(kind: str) -> None:
    rng, worst = random.Random(kind), 0.0
    for _ in range(CONFIGS):
        sizes, rope = draw(kind, rng)
        reference = as_config("new object", sizes, rope)
        style = rng.choice(["new object", "new dict", "saved dict", "old object", "old dict"])
        mine = RotaryEmbedding.from_hf(as_config(style, sizes, rope))
        length = rope.get("original_max_position_embeddings", sizes["max_position_embeddings"])
        for seq_len in (1, length, length + 1, rng.randint(1, 8 * length)):
            expected, expected_factor = theirs(kind, reference, seq_len)
            inv_freq, factor = mine.frequencies(seq_len)
            assert inv_freq.shape == expected.shape
            still = expected == 0  # proportional
            assert torch.equal(inv_freq == 0, still)
            error = ((inv_freq - expected) / expected)[~still].abs().max()
            worst = max(worst, float(error), abs(factor - expected_factor) / expected_factor)
            assert worst <= 1e-6, (style, sizes, rope, seq_len)
        assert mine.depends_on_length == (kind in ("dynamic", "longrope"))
    print(f"\n{kind}: worst relative error {worst:.1e} over {CONFIGS} configs")


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(("base", "length"), [(10.0, 4096), (7.0, 500), (1e4, 128), (1e4, 8)])
def test_the_ends_of_yarns_ramp_are_transformers_where_they_leave_the_head(
    base: float, length: int, truncate: bool
) -> None:
    sizes = {"head_dim": 16, "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 10**6}
    rope = {"rope_type": "yarn", "rope_theta": base, "factor": 8.0, "truncate": truncate}
    reference = as_config("new object", sizes, {**rope, "original_max_position_embeddings": length})
    inv_freq, _ = RotaryEmbedding.from_hf(reference).frequencies(1)
    torch.testing.assert_close(inv_freq, theirs("yarn", reference, 1)[0], rtol=1e-6, atol=0)


def nested(**rope: Any) -> dict[str, Any]:
    return {"head_dim": 64, "rope_parameters": {"full_attention": {"rope_theta": 150_000.0, **rope}}}


def test_truncate_is_read_where_it_stands_nested_too() -> None:
    # transformers 5.23 looks beside the nested parameters only, and misses it.
    yarn = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
    flat = {"head_dim": 64, "rope_parameters": {"rope_theta": 150_000.0, **yarn}}
    flat["rope_parameters"]["truncate"] = False
    expected = RotaryEmbedding.from_hf(flat).frequencies(1)[0]
    inside = RotaryEmbedding.from_hf(nested(**yarn, truncate=False), "full_attention")
    assert torch.equal(inside.frequencies(1)[0], expected)
    beside = nested(**yarn)
    beside["rope_parameters"]["truncate"] = False
    assert torch.equal(RotaryEmbedding.from_hf(beside, "full_attention").frequencies(1)[0], expected)
    assert not torch.equal(RotaryEmbedding.from_hf(nested(**yarn), "full_attention").frequencies(1)[0], expected)


def test_hunyuans_alpha_is_ntk_aware_scaling() -> None:
    from transformers.models.hunyuan_v1_dense.configuration_hunyuan_v1_dense import HunYuanDenseV1Config
    from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1RotaryEmbedding

    rope = {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0, "rope_theta": 10_000.0}
    config = HunYuanDenseV1Config(head_dim=128, rope_parameters=rope)
    mine = RotaryEmbedding.from_hf(config)
    assert not mine.depends_on_length
    expected, _ = HunYuanDenseV1RotaryEmbedding.compute_ntk_alpha_rope_parameters(config)
    torch.testing.assert_close(mine.frequencies(10**6)[0], expected, rtol=1e-6, atol=0)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"rope_type": "spiral"}, "rope_type='spiral': it must be one of default, linear"),
    ({"rope_type": "axial"}, "rope_type='axial'"),
    ({"type": "mrope", "mrope_section": [8, 12, 12]}, r"mrope_section=\[8, 12, 12\]"),
    ({"rope_type": "mrope"}, "rope_type='mrope'"),
    ({"mrope_section": [8, 12, 12]}, "mrope_section="),
    ({"rope_type": "linear"}, "factor=None"),
    ({"rope_type": "linear", "factor": 0.5}, "factor=0.5"),
    ({"rope_type": "dynamic"}, "factor=None"),
    ({"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings=None"),
    ({"rope_type": "yarn", "factor": 2.0}, "original_max_position_embeddings=None"),
    ({"rope_type": "yarn", "original_max_position_embeddings": 64}, "max_position_embeddings=None.*or factor"),
    ({"rope_type": "llama3", "factor": 2.0}, "original_max_position_embeddings=None"),
    ({"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 64}, "low_freq_factor=None"),
    ({"rope_type": "longrope", "long_factor": [2.0] * 4, "factor": 2.0}, "short_factor=None"),
    ({"rope_type": "longrope", "short_factor": [2.0] * 4, "factor": 2.0}, "long_factor=None"),
    (
        {
            "rope_type": "longrope",
            "short_factor": [2.0] * 4,
            "long_factor": [2.0] * 3,
            "factor": 2.0,
            "original_max_position_embeddings": 64,
        },
        "long_factors=.*4 numbers.*not 3",
    ),
    ({"rope_type": "proportional", "partial_rotary_factor": 0.0}, "fraction=0.0"),
]


@pytest.mark.parametrize(("rope", "named"), BAD)
@pytest.mark.parametrize("style", ["rope_parameters", "rope_scaling"])
def test_what_is_wrong_in_a_config_is_named(rope: dict[str, Any], named: str, style: str) -> None:
    with pytest.raises(ValueError, match=named):
        RotaryEmbedding.from_hf({"head_dim": 8, "rope_theta": 10_000.0, style: rope})
