"""Rotary settings of one of our layers in the words of a ``config.json``, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.checks import require
from toolkit.layers.rotary import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    ProportionalScaling,
    RotaryScaling,
    YaRNScaling,
    parse_scaling,
)
from toolkit.layers.rotary.hugging_face import rotary_settings
from toolkit.models.config import AttentionConfig

ORIGINAL = "original_max_position_embeddings"

WRITTEN: dict[type[RotaryScaling], tuple[str, dict[str, str]]] = {
    LinearScaling: ("linear", {"factor": "factor"}),
    DynamicNTKScaling: ("dynamic", {"factor": "factor"}),  # its length is the config's own, see write_rope
    YaRNScaling: (
        "yarn",
        {
            "factor": "factor",
            "original_length": ORIGINAL,
            **{name: name for name in ("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim")},
            "attention_factor": "attention_factor",
        },
    ),
    LongRoPEScaling: (
        "longrope",
        {
            "short_factors": "short_factor",
            "long_factors": "long_factor",
            "original_length": ORIGINAL,
            "factor": "factor",
            "attention_factor": "attention_factor",
        },
    ),
    Llama3Scaling: (
        "llama3",
        {
            "factor": "factor",
            "original_length": ORIGINAL,
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
        },
    ),
    ProportionalScaling: ("proportional", {"fraction": "partial_rotary_factor", "factor": "factor"}),
}
"""Of each scaling that they have: its rope_type, and their names of its fields."""


def read_rope(settings: Mapping[str, Any]) -> dict[str, Any]:
    """rope_base and rope_scaling of an :class:`AttentionConfig`, from ``rope_parameters`` or ``rope_scaling``.

    Raises:
        ValueError: naming a field that is missing or of an unknown kind, or that the family's models do not heed.
    """
    found = rotary_settings(settings)
    for name, field, only in (("partial_rotary_factor", "fraction", 1.0), ("rope_interleave", "interleaved", False)):
        require(found[field] == only, name, found[field], f"{only}, or left out: these models rotate whole heads")
    return {"rope_base": float(found["base"]), "rope_scaling": found["scaling"] and repr(found["scaling"])}


def write_rope(attention: AttentionConfig) -> dict[str, Any]:
    """The fields from which :func:`read_rope` reads ``attention``'s; of a scaling they do not have, none."""
    parameters: dict[str, Any] = {"rope_type": "default"}
    fields: dict[str, Any] = {}
    scaling = None if attention.rope_scaling is None else parse_scaling(attention.rope_scaling)
    if type(scaling) in WRITTEN:
        kind, names = WRITTEN[type(scaling)]  # type: ignore[index]  # None is not in it
        values = {theirs: getattr(scaling, ours) for ours, theirs in names.items()}
        parameters = {"rope_type": kind} | {name: _plain(value) for name, value in values.items() if value is not None}
    if isinstance(scaling, DynamicNTKScaling):
        fields["max_position_embeddings"] = scaling.original_length
    elif isinstance(scaling, YaRNScaling | LongRoPEScaling | Llama3Scaling):
        fields["max_position_embeddings"] = round(scaling.factor * scaling.original_length)  # what it serves
    base = 10_000.0 if attention.rope_base is None else attention.rope_base
    return fields | {"rope_parameters": {**parameters, "rope_theta": base}}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
