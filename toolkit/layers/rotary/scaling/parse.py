"""Scalings as text, so that a config file says ``YaRNScaling(factor=4, original_length=256)`` and means it."""

from __future__ import annotations

from toolkit.calls import Calls
from toolkit.layers.rotary.scaling.interface import RotaryScaling
from toolkit.layers.rotary.scaling.interpolation import LinearScaling, Llama3Scaling, ProportionalScaling
from toolkit.layers.rotary.scaling.longrope import LongRoPEScaling
from toolkit.layers.rotary.scaling.ntk import DynamicNTKScaling, NTKScaling
from toolkit.layers.rotary.scaling.yarn import YaRNScaling

KINDS = (
    LinearScaling,
    NTKScaling,
    DynamicNTKScaling,
    YaRNScaling,
    LongRoPEScaling,
    Llama3Scaling,
    ProportionalScaling,
)
NAMES: dict[str, type[RotaryScaling]] = {kind.__name__: kind for kind in KINDS}


def parse_scaling(text: str) -> RotaryScaling:
    """The scaling that ``text`` writes; the inverse of ``str(scaling)``.

    Only the names of scalings, called with literals, are understood: nothing is evaluated.

    Raises:
        ValueError: naming the text, what in it was not understood and the names that are known, or the field that
            the scaling refused.

    >>> parse_scaling("YaRNScaling(4, original_length=256)")
    YaRNScaling(factor=4, original_length=256)
    """
    scaling: RotaryScaling = Calls("scaling", NAMES, (RotaryScaling,)).read(text)
    return scaling
