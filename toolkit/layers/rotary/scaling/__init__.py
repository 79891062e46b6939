"""Laws that stretch a rotary embedding beyond the length it was trained on."""

from toolkit.layers.rotary.scaling.interface import RotaryScaling, unscaled
from toolkit.layers.rotary.scaling.interpolation import LinearScaling, Llama3Scaling, ProportionalScaling
from toolkit.layers.rotary.scaling.longrope import LongRoPEScaling
from toolkit.layers.rotary.scaling.ntk import DynamicNTKScaling, NTKScaling
from toolkit.layers.rotary.scaling.parse import parse_scaling
from toolkit.layers.rotary.scaling.yarn import YaRNScaling

__all__ = [
    "DynamicNTKScaling",
    "LinearScaling",
    "Llama3Scaling",
    "LongRoPEScaling",
    "NTKScaling",
    "ProportionalScaling",
    "RotaryScaling",
    "YaRNScaling",
    "parse_scaling",
    "unscaled",
]
