"""The layers of a model whose routing is watched, by short names."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from torch import nn

from toolkit.layers import MixtureOfDepths, MoE
from toolkit.routing import Assignment

Layer = TypeVar("Layer", bound=nn.Module)


def moe_layers(module: Any) -> list[tuple[str, MoE]]:
    """Every MoE of a LanguageModel with a short name: ``layer0``, ``layer1``, ..., or its path where it is nested."""
    return _named(module, MoE)


def routed_layers(module: Any) -> dict[str, MoE]:
    """Those of :func:`moe_layers` whose last forward sent tokens to experts.

    Soft routers do not, nor does a layer that only some tokens go through when none did.
    """
    routed = ((name, moe) for name, moe in moe_layers(module) if moe.has_run)
    return {name: moe for name, moe in routed if isinstance(moe.assignment, Assignment)}


def depth_layers(module: Any) -> dict[str, MixtureOfDepths]:
    """Every MixtureOfDepths of a LanguageModel by the same names: ``layer0``, ``layer1``, ..."""
    return dict(_named(module, MixtureOfDepths))


def _named(module: Any, kind: type[Layer]) -> list[tuple[str, Layer]]:
    return [(short_name(path), layer) for path, layer in module.decoder.named_modules() if isinstance(layer, kind)]


def short_name(path: str) -> str:
    """``layer0`` for the layer of a path in the decoder, or the path where it is nested."""
    plain = re.fullmatch(r"blocks\.(\d+)(\.feed_forward)?", path)
    return f"layer{plain[1]}" if plain else path
