"""The ways of reading longer than trained that are compared, each made for its model by a rule that is stated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from toolkit.checks import require, require_choice
from toolkit.layers.rotary.scaling import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NTKScaling,
    RotaryScaling,
    YaRNScaling,
    unscaled,
)

BASELINE = "none"


@dataclass(frozen=True)
class Stretch:
    """What is known when a method is set.

    Attributes:
        length: L, tokens the model was trained on.
        factor: s, the longest context that is to be served over L.
        rotary_dim: rotated dims of a head.
        base: theta of the rotary embedding.
    """

    length: int
    factor: float
    rotary_dim: int
    base: float


@dataclass(frozen=True)
class Method:
    """One way to extend.

    Attributes:
        name: as tables and command lines have it.
        about: what it does, and the rule that sets it.
        scaling: the rule: None for no scaling.
    """

    name: str
    about: str
    scaling: Callable[[Stretch], RotaryScaling | None]

    def text(self, stretch: Stretch) -> str | None:
        """``AttentionConfig.rope_scaling`` for a model."""
        scaling = self.scaling(stretch)
        return None if scaling is None else str(scaling)


def longrope_factors(stretch: Stretch) -> tuple[float, ...]:
    """Long factors without LongRoPE's search, (rotary_dim / 2,): 1 for a pair that turns once in L, s for the others.

    A pair of wavelength 2 pi / w_k up to L tokens has shown every angle in training; a slower one has shown angles up
    to L w_k only, and reading s L tokens stays within them if it is slowed by s (the critical dimension of Liu et al.
    2023, arXiv 2310.05209). Non-decreasing, as LongRoPE asks of what it searches.
    """
    frequencies = unscaled(stretch.rotary_dim, stretch.base).tolist()
    return tuple(1.0 if 2 * math.pi / w <= stretch.length else float(stretch.factor) for w in frequencies)


def _longrope(stretch: Stretch) -> RotaryScaling:
    short = (1.0,) * (stretch.rotary_dim // 2)
    return LongRoPEScaling(short, longrope_factors(stretch), stretch.length, stretch.factor)


METHODS = (
    Method(BASELINE, "frequencies as trained: plain extrapolation", lambda stretch: None),
    Method(
        "linear",
        "position interpolation: every frequency over s (Chen et al. 2023)",
        lambda stretch: LinearScaling(stretch.factor),
    ),
    Method(
        "ntk",
        "NTK-aware: the base times s^(d / (d - 2)) (bloc97 2023)",
        lambda stretch: NTKScaling(stretch.factor),
    ),
    Method(
        "dynamic-ntk",
        "NTK-aware by n / L at a length of n tokens, nothing up to L: needs no target, so its factor is 1 (emozilla "
        "2023)",
        lambda stretch: DynamicNTKScaling(1, stretch.length),
    ),
    Method(
        "yarn",
        "NTK by parts with the paper's ramp, and its temperature (Peng et al. 2023)",
        lambda stretch: YaRNScaling(stretch.factor, stretch.length),
    ),
    Method(
        "llama3",
        "slow frequencies over s, fast ones kept, between them interpolated (Grattafiori et al. 2024)",
        lambda stretch: Llama3Scaling(stretch.factor, stretch.length),
    ),
    Method(
        "longrope",
        "factors for each pair, above L only: not searched, but 1 where a pair turns once in L and s elsewhere; the "
        "paper's temperature at every length (Ding et al. 2024)",
        _longrope,
    ),
)
"""All but proportional and partial rotary embeddings, which say at the start of training which pairs turn at all: set
afterwards they are no extension (with every pair turning, proportional is linear)."""

NAMES = tuple(method.name for method in METHODS)


def methods_named(names: Sequence[str] | None) -> tuple[Method, ...]:
    """Those methods in the order of ``METHODS``, the baseline among them; None for all.

    Raises:
        ValueError: a name is unknown or given twice, or the baseline is missing.
    """
    if names is None:
        return METHODS
    for name in names:
        require_choice("methods", name, NAMES)
    require(len(set(names)) == len(names), "methods", names, "named once each")
    require(BASELINE in names, "methods", names, f"with {BASELINE!r} among them: what the others are measured against")
    return tuple(method for method in METHODS if method.name in names)
