"""The experts by Triton kernels, for a GPU: a backend like ``cpu``; importing it needs no Triton, computing does.

See :mod:`toolkit.layers.experts.kernels.launch`.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from toolkit.layers.experts.activations import Activation
from toolkit.layers.experts.weights import Weights
from toolkit.routing import ExpertRows


def kept_rows(n: int, dtype: torch.dtype) -> int:
    """Rows of the pre-activations that ``forward`` returns for n triples: n, none are padding."""
    return n


def forward(
    x: Tensor, weight: Tensor, rows: ExpertRows, starts: Tensor, weights: Weights, activation: Activation, keep: bool
) -> tuple[Tensor, Tensor]:
    """out (tokens, dim), and the pre-activations by sorted row (n, width), (0, width) unless ``keep``.

    Shapes: x (tokens, dim) in fp16, bf16 or fp32; weight (n,); starts int64 (tokens + 1,).

    Raises:
        RuntimeError: without Triton, or without a GPU and the interpreter.
        ValueError: a dtype or shape the kernels do not take.
    """
    return _kernels(x.device).forward(x, weight, rows, starts, weights, activation, keep)


def backward(
    d_out: Tensor,
    x: Tensor,
    weight: Tensor,
    rows: ExpertRows,
    starts: Tensor,
    weights: Weights,
    activation: Activation,
    hidden: Tensor,
) -> tuple[Tensor, Tensor, Weights]:
    """The gradients of x (tokens, dim), weight (n,) by triple, and the weights; ``hidden`` of no rows is made again.

    Raises:
        RuntimeError, ValueError: as ``forward`` does.
    """
    launch = _kernels(x.device)
    return launch.backward(d_out, x, weight, rows, starts, weights, activation, hidden)


def _kernels(device: torch.device) -> Any:
    """The module that launches them."""
    try:
        from toolkit.layers.experts.kernels import launch
    except ImportError as error:
        raise RuntimeError(f"backend='triton' needs the triton package: {error}") from error
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"backend='triton' on {device}: it needs tensors on a GPU, or TRITON_INTERPRET=1 set before the kernels "
            "are imported"
        )
    return launch
