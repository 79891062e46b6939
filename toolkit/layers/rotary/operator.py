"""The rotation as one operator of torch: one launch forward and one backward, compiled without a break, no FLOPs.

``toolkit::rotate`` is linear in x, and its gradient is itself with the angles turned back: it can be differentiated
backward as often as one likes, and keeps only the table for it. torch gives such an operator no forward mode, and its
function transforms refuse it: within them plain torch rotates.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from toolkit.checks import require

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Read when this is imported, as Triton reads it when kernels are."""


def runs_kernel(x: Tensor, cos: Tensor) -> bool:
    """Whether the operator takes x: on a GPU (or interpreted) with Triton, angles in fp32; fp64 has no kernel."""
    if _transformed():
        return False
    narrow = x.dtype in (torch.float16, torch.bfloat16, torch.float32) and cos.dtype == torch.float32
    return HAS_TRITON and narrow and (x.device.type == "cuda" or (INTERPRETED and x.device.type == "cpu"))


def _transformed() -> bool:
    """Within forward-mode differentiation, or a transform of torch.func."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def operator_rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, heads: int) -> Tensor:
    """The same function as :func:`toolkit.layers.rotary.apply.plain_rotate_pairs`; its result is contiguous.

    Shapes: x (batch, all heads, length, head_dim) -> the same. Attention, and a cache of keys, read each head's rows
    one after another. The gradient by x has its axes in memory in x's order: that of queries in one projection
    (batch, length, heads * head_dim) is a view of what the projection's backward pass multiplies, with no copy.

    Raises:
        ValueError: as the kernel does, or if ``cos`` or ``sin`` requires a gradient.
    """
    learned = cos.requires_grad or sin.requires_grad
    require(not learned, "cos.requires_grad or sin.requires_grad", learned, "False: tables get no gradient")
    out: Tensor = rotate_operator(x, cos, sin, interleaved, heads, False, False)
    return out


@torch.library.custom_op("toolkit::rotate", mutates_args=())
def rotate_operator(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, heads: int, inverse: bool, rows_first: bool
) -> Tensor:
    """x (batch, all heads, length, head_dim), its first ``heads`` heads rotated, or with ``inverse`` turned back.

    cos, sin (batch or 1, length, rotary_dim / 2) fp32. With ``rows_first`` the result lies in memory as
    (batch, length, heads, head_dim).

    Raises:
        RuntimeError: without Triton, or without a GPU and the interpreter.
        ValueError: a dtype, shape or device the kernel does not take.
    """
    out = _empty(x, rows_first)
    _kernels(x.device).rotate(x, cos, sin, out, interleaved, heads, inverse)
    return out


@rotate_operator.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, heads: int, inverse: bool, rows_first: bool) -> Tensor:
    return _empty(x, rows_first)


def _empty(x: Tensor, rows_first: bool) -> Tensor:
    """Memory for the result, that nobody has written."""
    batch, heads, length, head_dim = x.shape
    if rows_first:
        return torch.empty(batch, length, heads, head_dim, dtype=x.dtype, device=x.device).transpose(1, 2)
    return torch.empty(batch, heads, length, head_dim, dtype=x.dtype, device=x.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, cos, sin, interleaved, heads, inverse, _ = inputs
    ctx.settings = interleaved, heads, not inverse, bool(x.stride(1) < x.stride(2))
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    return rotate_operator(d_out, *ctx.saved_tensors, *ctx.settings), *(None,) * 6


rotate_operator.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.toolkit.rotate)
def rotate_flops(*_: Any, **__: Any) -> int:
    """None: only products of matrices are counted."""
    return 0


def _kernels(device: torch.device) -> Any:
    """The module that launches them."""
    try:
        from toolkit.layers.rotary.kernels import launch
    except ImportError as error:
        raise RuntimeError(f"toolkit::rotate needs the triton package: {error}") from error
    if device.type != "cuda" and not INTERPRETED:
        raise RuntimeError(
            f"toolkit::rotate on {device}: it needs tensors on a GPU, or TRITON_INTERPRET=1 set before the kernels "
            "are imported"
        )
    return launch
