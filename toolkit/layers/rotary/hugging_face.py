"""Hugging Face configs as settings of a rotary embedding: what transformers 5 writes, and what it wrote before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from toolkit.checks import require
from toolkit.layers.rotary.config_fields import as_float, field
from toolkit.layers.rotary.model_types import (
    FIXED_BASES,
    FRACTIONS,
    INTERLEAVED,
    LATENT,
    UNHEEDED_ROTARY_DIM,
    UNREAD,
)
from toolkit.layers.rotary.rope_types import ORIGINAL, scaling_of
from toolkit.layers.rotary.scaling import ProportionalScaling, RotaryScaling, YaRNScaling


def rotary_settings(config: Any, layer_type: str | None = None) -> dict[str, Any]:
    """Keyword arguments of :class:`RotaryEmbedding` for a config object, or ``config.json`` as a dict.

    What a model's code settles and its config does not say stands in ``model_types.py``; a model type that is not
    there is read as Llama's, but refused if it has latent attention. Of several places, the first that holds
    something counts:

    ====================  ==========================================================================================
    what                  where
    ====================  ==========================================================================================
    config                ``text_config``; the config itself
    rope fields           of an object ``rope_parameters``; ``rope_scaling``. Of a file, ``rope_scaling``;
                          ``rope_parameters``
    one rope field        nested per layer type: those of ``layer_type``; what stands beside them among the rope fields
    ..                    before nesting (Gemma 3, ModernBERT): sliding layers have but ``rope_local_base_freq`` or
                          ``local_rope_theta``, full ones all others
    original length       flat: ``original_max_position_embeddings`` of the config; of the rope fields. Nested: of the
                          rope fields; of the config
    base                  the rope fields' ``rope_theta``; the config's ``rope_theta``, ``rotary_emb_base``,
                          ``global_rope_theta``; the model type's
    head_dim              ``qk_rope_head_dim``; what layers of ``layer_type`` have for themselves
                          (``per_layer_config``, ``global_head_dim``); ``head_dim``, ``attention_head_dim``,
                          ``kv_channels``; width over heads
    fraction              the rope fields' ``partial_rotary_factor``; the config's, or ``rotary_pct``; ``rotary_dim``
                          over head_dim; the model type's; 1
    interleaved           ``rope_interleave``; the model type's
    ====================  ==========================================================================================

    What makes queries grow with position (``llama_4_scaling_beta``) is no rotation, and not read.

    Raises:
        ValueError: naming the field that is missing, of an unknown or multimodal kind, or not what it must be.
    """
    _require_served(config)
    config = _of_layers(config, layer_type)
    _require_served(config)
    parameters = _parameters(config, layer_type)
    head_dim, fraction = _latent_sizes(config, parameters) or _sizes(config, parameters)
    scaling = scaling_of(config, {**parameters, "partial_rotary_factor": fraction})
    return {
        "head_dim": head_dim,
        "base": _base(config, parameters),
        "scaling": scaling,
        "fraction": 1.0 if isinstance(scaling, ProportionalScaling) else fraction,
        "interleaved": bool(field(config, "rope_interleave", default=_model_type(config) in INTERLEAVED)),
        "softmax_scale_multiplier": _softmax_scale_multiplier(config, scaling),
    }


def _model_type(config: Any) -> str:
    return str(field(config, "model_type", default=""))


def _require_served(config: Any) -> None:
    model_type = _model_type(config)
    right = f"one with a plain rotary embedding over one axis of positions: {UNREAD.get(model_type)}"
    require(model_type not in UNREAD, "model_type", model_type, right)


def _softmax_scale_multiplier(config: Any, scaling: RotaryScaling | None) -> float:
    applied = field(config, "qk_rope_head_dim") is not None and LATENT[_model_type(config)]
    return scaling.softmax_scale_multiplier if applied and isinstance(scaling, YaRNScaling) else 1.0


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
        fixed = FIXED_BASES.get(_model_type(config))
        base = field(config, "rope_theta", "rotary_emb_base", "global_rope_theta", default=fixed)
    right = "given: its default differs from model to model (a config loaded by transformers has it filled in)"
    require(base is not None, "rope_theta", base, right)
    return as_float("rope_theta", base)


def _latent_sizes(config: Any, parameters: dict[str, Any]) -> tuple[int, float] | None:
    """head_dim and fraction of multi-head latent attention, which rotates dims in a tensor of their own; else None."""
    latent = field(config, "qk_rope_head_dim")
    if latent is None:
        return None
    model_type = _model_type(config)
    right = f"one of {', '.join(LATENT)}, for models of latent attention differ in how they rotate ('deepseek_v3' for"
    require(model_type in LATENT, "model_type", model_type, f"{right} a copy of it)")
    fraction = _written_fraction(config, parameters)
    # The fraction may be of the whole.
    wholes = (field(config, "head_dim"), latent + field(config, "qk_nope_head_dim", default=0))
    counted = any(whole and int(whole * (fraction or 1.0)) == latent for whole in wholes)
    return latent, 1.0 if fraction is None or counted else fraction


def _sizes(config: Any, parameters: dict[str, Any]) -> tuple[int, float]:
    """head_dim and the fraction of it that is rotated."""
    head_dim = field(config, "head_dim", "attention_head_dim", "kv_channels")
    if head_dim is None:
        head_dim = _derived_head_dim(config)
    fraction, model_type = _written_fraction(config, parameters), _model_type(config)
    rotary_dim = None if model_type in UNHEEDED_ROTARY_DIM else field(config, "rotary_dim")
    if fraction is None and rotary_dim is not None:
        fraction = _ratio(rotary_dim, head_dim)
    return head_dim, FRACTIONS.get(model_type, 1.0) if fraction is None else fraction


def _derived_head_dim(config: Any) -> int:
    width = field(config, "hidden_size", "n_embd", "d_model")
    heads = field(config, "num_attention_heads", "n_head", "n_heads")
    right = "given, or hidden_size and num_attention_heads, from which it is derived"
    require(isinstance(width, int) and isinstance(heads, int) and heads > 0, "head_dim", None, right)
    return int(width // heads)


def _written_fraction(config: Any, parameters: dict[str, Any]) -> float | None:
    fraction: float | None = field(parameters, "partial_rotary_factor")
    return field(config, "partial_rotary_factor", "rotary_pct") if fraction is None else fraction


def _ratio(part: int, whole: int) -> float:
    """part / whole, rounded such that int(whole * ratio) is part."""
    ratio = part / whole
    return ratio if int(whole * ratio) == part else math.nextafter(ratio, 2.0)
