"""What the experts launch on the shipped tiles, recorded to be compiled for cards that are not here."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from toolkit.kernels.compile import Resources
from toolkit.kernels.compile import faults as compiled_faults
from toolkit.kernels.launch import Recorded, recording
from toolkit.layers.experts.activations import Activation
from toolkit.layers.experts.kernels.config import KERNELS, Tile, shipped_tile, vector
from toolkit.layers.experts.kernels.launch import backward, forward
from toolkit.layers.experts.weights import Weights
from toolkit.routing import sort_by_expert, token_starts

STACK_LIMIT = {2: 0, 4: 64}
"""Bytes of stack a thread may take, by the bytes of an element."""
_INPUT = {"hidden": "x", "product": "left", "gradient": "d_out", "outer": "left"}


def shipped_launches(
    dim: int,
    hidden_dim: int,
    dtype: torch.dtype,
    family: str,
    activation: str = "swiglu",
    bias: bool = False,
    tiles: Mapping[str, Tile] | None = None,
) -> list[Recorded]:
    """What forward and backward launch on the shipped tiles, or on those of ``tiles`` by kernel name, in their order.

    That is hidden, product, combine; gradient, weight, outer of the second and of the first weights, the bias sums of
    the first and of the second if ``bias``, product, combine.

    Raises:
        ValueError: an unknown activation, or a configuration that the table lacks.
    """
    act, experts, tokens = Activation(activation), 4, 64
    width = act.width(hidden_dim)
    token = torch.arange(tokens)
    rows, starts = sort_by_expert(token, token % experts, experts), token_starts(token, tokens)
    x, weight = torch.zeros(tokens, dim, dtype=dtype), torch.zeros(tokens)
    shapes = (experts, width, dim), (experts, dim, hidden_dim), (experts, width), (experts, dim)
    weights = Weights(*(torch.zeros(shape, dtype=dtype) for shape in shapes[: 4 if bias else 2]))
    aligned = all(size % vector(dtype) == 0 for size in (dim, hidden_dim))
    chosen = {kernel: shipped_tile(kernel, dtype, family, aligned) for kernel in KERNELS} | dict(tiles or {})
    with recording() as found:
        out, hidden = forward(x, weight, rows, starts, weights, act, True, tiles=chosen)
        backward(out, x, weight, rows, starts, weights, act, hidden, tiles=chosen)
    return found


def faults(found: Resources, launch: Recorded, family: str) -> list[str]:
    """Why a compiled kernel would not do; none if it will."""
    multiplies = launch.name in KERNELS  # combine, weight and bias multiply no tiles
    element = launch.arguments[_INPUT[launch.name]].dtype.itemsize if multiplies else 2
    return compiled_faults(found, family, element=element, multiplies=multiplies, stack_limit=STACK_LIMIT[element])
