"""Hugging Face configs as settings of a rotary embedding: what transformers 5 writes, and what it wrote before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from toolkit.checks import require
from toolkit.layers.rotary.config_fields import field, required
from toolkit.layers.rotary.rope_types import ORIGINAL, scaling_of
from toolkit.layers.rotary.scaling import ProportionalScaling, YaRNScaling

INTERLEAVED = (
    *("axk1", "axk2", "bailing_hybrid", "blt", "codegen", "cohere", "cohere2", "cohere2_moe", "deepseek_v2"),
    *("deepseek_v3", "deepseek_v32", "deepseek_v4", "dots3_note_text", "ernie4_5", "ernie4_5_moe", "glm", "glm4"),
    *("glm4_moe_lite", "glm_moe_dsa", "gptj", "helium", "llama4_text", "longcat_flash", "mistral4", "youtu"),
)
"""Model types whose transformers code pairs dims (2k, 2k + 1), unless ``rope_interleave`` says otherwise."""

FRACTIONS = {
    **dict.fromkeys(("gpt_neox", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "stablelm"), 0.25),
    **dict.fromkeys(("bamba", "glm", "glm4", "glm4_moe", "nemotron", "persimmon", "phi", "recurrent_gemma"), 0.5),
}
"""Model types that rotate a part of each head where their config says nothing of it."""

FIXED_BASES = dict.fromkeys(("codegen", "gptj"), 10_000.0)
"""Model types whose configs have no field for the base."""


def rotary_settings(config: Any, layer_type: str | None = None) -> dict[str, Any]:
    """Keyword arguments of :class:`RotaryEmbedding` for a config object, or ``config.json`` as a dict.

    What makes queries grow with position (``llama_4_scaling_beta``) is no rotation, and not read.

    Raises:
        ValueError: naming the field that is missing, of an unknown or multimodal kind, or not what it must be.
    """
    config = _of_layers(config, layer_type)
    parameters = _parameters(config, layer_type)
    head_dim, fraction = _sizes(config, parameters)
    scaling = scaling_of(config, {**parameters, "partial_rotary_factor": fraction})
    model_type, latent = field(config, "model_type"), field(config, "qk_rope_head_dim") is not None
    multiplier = scaling.softmax_scale_multiplier if latent and isinstance(scaling, YaRNScaling) else 1.0
    return {
        "head_dim": head_dim,
        "base": _base(config, parameters),
        "scaling": scaling,
        "fraction": 1.0 if isinstance(scaling, ProportionalScaling) else fraction,
        "interleaved": bool(field(config, "rope_interleave", default=model_type in INTERLEAVED)),
        "softmax_scale_multiplier": multiplier,
    }


def _of_layers(config: Any, layer_type: str | None) -> Any:
    """The text model's config, where layers differ in size as layers of this type have it."""
    config = field(config, "text_config", default=config)
    if not isinstance(config, Mapping):
        differ = layer_type is not None and field(config, "is_heterogeneous", default=False)
        return config.per_layer_config[layer_type] if differ else config
    overrides: dict[str, Any] = {}
    if layer_type == "full_attention" and field(config, "global_head_dim") is not None:
        overrides = {"head_dim": config["global_head_dim"]}  # Gemma 4's first files
    layer_types = field(config, "layer_types", default=[])
    if layer_type in layer_types:
        by_layer = {int(layer): own for layer, own in field(config, "per_layer_config", default={}).items()}
        overrides = by_layer.get(layer_types.index(layer_type), overrides)
    return {**config, **overrides}


def _parameters(config: Any, layer_type: str | None) -> dict[str, Any]:
    """The rope fields of layers of this type, flat."""
    names = ("rope_scaling", "rope_parameters")  # in a file the older name wins, as in transformers
    parameters = dict(field(config, *(names if isinstance(config, Mapping) else reversed(names)), default={}))
    local = field(config, "rope_local_base_freq", "local_rope_theta")  # Gemma 3 and ModernBERT, before transformers 5
    nested = {name: value for name, value in parameters.items() if isinstance(value, Mapping)}
    original = field(config, ORIGINAL)
    beside = {} if original is None else {ORIGINAL: original}
    if not nested and local is None:
        return {**parameters, **beside}  # beside the rope fields (Phi-3) it wins, as in transformers
    known = list(nested) or ["sliding_attention", "full_attention"]
    right = "one of " + ", ".join(known) + ": this config's layers differ in their rotary embeddings"
    require(layer_type in known, "layer_type", layer_type, right)
    if nested:
        shared = {name: value for name, value in parameters.items() if name not in nested}
        return {**beside, **shared, **nested[str(layer_type)]}
    return {"rope_theta": local} if layer_type == "sliding_attention" else {**parameters, **beside}


def _base(config: Any, parameters: dict[str, Any]) -> float:
    base = field(parameters, "rope_theta")
    if base is None:
        fixed = FIXED_BASES.get(field(config, "model_type", default=""))
        base = field(config, "rope_theta", "rotary_emb_base", "global_rope_theta", default=fixed)
    right = "given: its default differs from model to model (a config loaded by transformers has it filled in)"
    require(base is not None, "rope_theta", base, right)
    return float(base)


def _sizes(config: Any, parameters: dict[str, Any]) -> tuple[int, float]:
    """head_dim and the fraction of it that is rotated."""
    head_dim = field(config, "head_dim", "attention_head_dim", "kv_channels")
    fraction = field(parameters, "partial_rotary_factor")
    if fraction is None:
        fraction = field(config, "partial_rotary_factor", "rotary_pct")
    latent = field(config, "qk_rope_head_dim")
    if latent is not None:
        # Multi-head latent attention rotates these dims in a tensor of their own; the fraction may be of the whole.
        wholes = (head_dim, latent + field(config, "qk_nope_head_dim", default=0))
        counted = any(whole and int(whole * (fraction or 1.0)) == latent for whole in wholes)
        return latent, 1.0 if fraction is None or counted else fraction
    if head_dim is None:
        width = field(config, "hidden_size", "n_embd", "d_model")
        heads = field(config, "num_attention_heads", "n_head", "n_heads")
        right = "given, or hidden_size and num_attention_heads, from which it is derived"
        require(width is not None and heads is not None, "head_dim", head_dim, right)
        head_dim = width // heads
    if fraction is None and field(config, "rotary_dim") is not None:
        fraction = _ratio(required(config, "rotary_dim"), head_dim)
    return head_dim, FRACTIONS.get(field(config, "model_type", default=""), 1.0) if fraction is None else fraction


def _ratio(part: int, whole: int) -> float:
    """part / whole, rounded such that int(whole * ratio) is part."""
    ratio = part / whole
    return ratio if int(whole * ratio) == part else math.nextafter(ratio, 2.0)
