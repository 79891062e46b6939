"""The rope types of Hugging Face configs, each as a scaling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from toolkit.checks import require
from toolkit.layers.rotary.config_fields import as_float, field, required
from toolkit.layers.rotary.scaling import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NTKScaling,
    ProportionalScaling,
    RotaryScaling,
    YaRNScaling,
)

ORIGINAL = "original_max_position_embeddings"


def scaling_of(config: Any, parameters: dict[str, Any]) -> RotaryScaling | None:
    """The scaling that rope ``parameters`` (flat) of a ``config`` describe; None for the default type.

    ``partial_rotary_factor`` must be among them where the type takes it (proportional).

    Raises:
        ValueError: naming the field that is missing, of an unknown or multimodal kind, or not what it must be.
    """
    for multimodal in ("mrope_section", "mrope_interleaved"):
        value = parameters.get(multimodal)
        require(value is None, multimodal, value, "absent: rotary embeddings of several axes are not read")
    kind = field(parameters, "rope_type", "type", default="default")
    if kind == "su" or (kind == "yarn" and field(config, "model_type") == "phi3"):
        kind = "longrope"  # what it was called in Phi-3's first configs
    require(kind in ROPE_TYPES, "rope_type", kind, "one of " + ", ".join(ROPE_TYPES))
    return ROPE_TYPES[kind](config, parameters)


def _default(config: Any, parameters: dict[str, Any]) -> None:
    return None


def _linear(config: Any, parameters: dict[str, Any]) -> RotaryScaling:
    return LinearScaling(required(parameters, "factor"))


def _dynamic(config: Any, parameters: dict[str, Any]) -> RotaryScaling:
    """With ``alpha`` (Hunyuan) it does not depend on the length, whatever it is called."""
    if field(parameters, "alpha"):
        return NTKScaling(parameters["alpha"])
    return DynamicNTKScaling(required(parameters, "factor"), required(config, "max_position_embeddings"))


def _yarn(config: Any, parameters: dict[str, Any]) -> RotaryScaling:
    names = ("mscale", "mscale_all_dim", "attention_factor")
    return YaRNScaling(
        _factor(config, parameters),
        required(parameters, ORIGINAL),
        field(parameters, "beta_fast") or 32,
        field(parameters, "beta_slow") or 1,
        field(parameters, "truncate", default=True),
        **{name: field(parameters, name) for name in names},
    )


def _longrope(config: Any, parameters: dict[str, Any]) -> RotaryScaling:
    return LongRoPEScaling(
        required(parameters, "short_factor"),
        required(parameters, "long_factor"),
        required(parameters, ORIGINAL),
        _factor(config, parameters),
        field(parameters, "attention_factor"),
    )


def _llama3(config: Any, parameters: dict[str, Any]) -> RotaryScaling:
    names = ("factor", ORIGINAL, "low_freq_factor", "high_freq_factor")
    return Llama3Scaling(*(required(parameters, name) for name in names))


def _proportional(config: Any, parameters: dict[str, Any]) -> RotaryScaling:
    return ProportionalScaling(required(parameters, "partial_rotary_factor"), field(parameters, "factor", default=1.0))


def _factor(config: Any, parameters: dict[str, Any]) -> float:
    """The factor, or the length served over the one trained on."""
    factor = field(parameters, "factor")
    if factor is not None:
        return as_float("factor", factor)
    longest = required(config, "max_position_embeddings", "given, or factor among the rope parameters")
    return as_float("max_position_embeddings", longest) / as_float(ORIGINAL, required(parameters, ORIGINAL))


ROPE_TYPES: dict[str, Callable[[Any, dict[str, Any]], RotaryScaling | None]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
}
