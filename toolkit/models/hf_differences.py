"""Where a decoder's config differs from what Hugging Face's words say of it: each such setting is refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from toolkit.attention.patterns import And, SlidingWindow
from toolkit.attention.selection import parse_sparsity
from toolkit.checks import require
from toolkit.layers.rotary import parse_scaling
from toolkit.models.config import AttentionConfig, BlockConfig, DecoderConfig, MoEConfig

TRAINING: dict[str, Any] = {
    "z_loss": 0.0,
    "capacity_factor": None,
    "drop_policy": "probability",
    "recompute": False,
    "causal": True,
}
"""Settings of a MoE that evaluation does not see and Hugging Face has no field for, as it leaves them."""


def require_same(config: DecoderConfig, read: DecoderConfig, architecture: str, for_evaluation: bool) -> None:
    """Raise a ``ValueError`` for a muP multiplier, or the first setting of a block that ``read`` has otherwise.

    Args:
        config: of the decoder.
        read: what was written of it, read back; its blocks are alike.
        architecture: whose words they were.
        for_evaluation: settings in ``TRAINING`` may differ.
    """
    base, dim = config.mup_base_dim, config.dim
    right = f"None, or dim={dim}, in a {architecture}, whose logits have no multiplier mup_base_dim / dim"
    require(base in (None, dim), "decoder.config.mup_base_dim", base, right)
    for n, block in enumerate(config.blocks):
        here, expected = f"decoder.config.blocks[{n}]", read.blocks[0]
        kind, right = type(block.feed_forward).__name__, type(expected.feed_forward).__name__
        require(kind == right, f"{here}.feed_forward", kind, f"{right} as in blocks[0]: all layers are alike")
        usually = replace(block, attention=usual(block.attention, config.dim))
        settings = dict(_fields(asdict(expected)))
        for name, value in _fields(asdict(_evaluated(usually) if for_evaluation else usually)):
            _require_setting(f"{here}.{name}", value, settings[name], architecture)


def usual(attention: AttentionConfig, dim: int) -> AttentionConfig:
    """The same with None for sizes that are the default, and pattern and scaling as they are read back."""
    pattern = pattern_of(window_of(attention.pattern))
    return replace(
        attention,
        kv_heads=None if attention.kv_heads == attention.heads else attention.kv_heads,
        head_dim=None if (attention.head_dim or 0) * attention.heads == dim else attention.head_dim,
        pattern=pattern if _parts(attention.pattern) == _parts(pattern) else attention.pattern,
        rope_scaling=None if attention.rope_scaling is None else _written(attention.rope_scaling),
    )


def _written(rope_scaling: str) -> str:
    """The scaling as it prints itself, its factor with a decimal point."""
    scaling: Any = parse_scaling(rope_scaling)
    return repr(replace(scaling, factor=float(scaling.factor)))


def pattern_of(window: int | None) -> str:
    """The pattern of a causal model with this ``sliding_window``."""
    return "Causal()" if window is None else f"Causal() & SlidingWindow({window})"


def window_of(pattern: str) -> int | None:
    """The width of the ``SlidingWindow`` that ``pattern`` joins to others by &, if any."""
    parsed = parse_sparsity(pattern)
    parts = parsed.parts if isinstance(parsed, And) else ()
    return next((part.width for part in parts if isinstance(part, SlidingWindow)), None)


def _parts(pattern: str) -> list[str]:
    """What a pattern joins by &, each as text, in one order."""
    parsed = parse_sparsity(pattern)
    return sorted(str(part) for part in (parsed.parts if isinstance(parsed, And) else (parsed,)))


def _evaluated(block: BlockConfig) -> BlockConfig:
    """The same without what only training sees."""
    moe = block.feed_forward
    if not isinstance(moe, MoEConfig):
        return block
    # Beside a router that names its losses, z_loss stands at its default and means nothing.
    left = {name: value for name, value in TRAINING.items() if name != "z_loss" or moe.router is None}
    return replace(block, feed_forward=replace(moe, **left))


def _fields(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its dotted name; routers first, since losses are compared only beside like ones."""
    for name, value in sorted(values.items(), key=lambda field: field[0] != "router"):
        if isinstance(value, dict):
            yield from _fields(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _require_setting(path: str, value: Any, expected: Any, architecture: str) -> None:
    name = path.rpartition(".")[2]
    # A loss's coefficient may have been rounded in its last digits.
    same = math.isclose(value, expected, rel_tol=1e-12) if isinstance(expected, float) and value else value == expected
    right = "'Causal()' or 'Causal() & SlidingWindow(width)'" if name == "pattern" else repr(expected)
    hint = ", or for_evaluation=True to leave out what training alone sees" if name in TRAINING else ""
    require(same, path, value, f"{right} in a {architecture}, whose layers are all alike{hint}")
