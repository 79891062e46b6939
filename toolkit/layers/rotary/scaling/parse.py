"""Scalings as text, so that a config file says ``YaRNScaling(factor=4, original_length=256)`` and means it."""

from __future__ import annotations

import ast

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
    try:
        return _called(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, RecursionError, _NotAScalingError) as error:
        known = ", ".join(sorted(NAMES))
        raise ValueError(f"scaling={text!r}: {error}; it must be {known}, called with its arguments") from None
    except ValueError as error:
        raise ValueError(f"scaling={text!r}: {error}") from error


class _NotAScalingError(Exception):
    pass


def _called(node: ast.expr) -> RotaryScaling:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise _NotAScalingError("it is no scaling")
    kind = NAMES.get(node.func.id)
    if kind is None:
        raise _NotAScalingError(f"no scaling is called {node.func.id}")
    if any(isinstance(argument, ast.Starred) for argument in node.args) or any(k.arg is None for k in node.keywords):
        raise _NotAScalingError(f"the arguments of {ast.unparse(node)} must stand one by one")
    arguments = [_literal(argument) for argument in node.args]
    return kind(*arguments, **{str(keyword.arg): _literal(keyword.value) for keyword in node.keywords})


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise _NotAScalingError(f"{ast.unparse(node)} is not a literal") from None
