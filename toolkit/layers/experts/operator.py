"""The experts as one operator of torch: compiled without a break, differentiated once, counted exactly.

``toolkit::experts`` sorts the triples inside, where neither a compiler's tracing nor a fake tensor meets it.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from toolkit.checks import refuse_double_backward
from toolkit.layers.experts import cpu
from toolkit.layers.experts.activations import Activation
from toolkit.layers.experts.weights import Weights
from toolkit.routing import Assignment, ExpertRows, sort_by_expert, token_starts


class Backend(Protocol):
    """What computes the experts of sorted rows; see :mod:`toolkit.layers.experts.cpu`."""

    def kept_rows(self, n: int, dtype: torch.dtype) -> int:
        """Rows of the pre-activations that ``forward`` returns for n triples."""

    def forward(
        self, x: Tensor, weight: Tensor, rows: ExpertRows, starts: Tensor, weights: Weights, activation: Activation,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """out (tokens, dim), and the pre-activations by sorted row (kept_rows, width), (0, width) unless ``keep``."""

    def backward(
        self, d_out: Tensor, x: Tensor, weight: Tensor, rows: ExpertRows, starts: Tensor, weights: Weights,
        activation: Activation, hidden: Tensor,
    ) -> tuple[Tensor, Tensor, Weights]:  # fmt: skip
        """The gradients of x, weight and the weights; ``hidden`` of no rows is computed again."""


def backend_module(name: str) -> Backend:
    """The module that computes for ``"cpu"`` or ``"triton"``.

    Raises:
        RuntimeError: if triton is asked for and not installed.
    """
    if name == "cpu":
        return cpu
    try:
        from toolkit.layers.experts import triton
    except ImportError as error:
        raise RuntimeError(f"backend='triton' needs the triton package: {error}") from error
    return triton


def operator_experts(
    x: Tensor, assignment: Assignment, weights: Weights, activation: Activation, recompute: bool, backend: str
) -> Tensor:
    """The same function as :func:`toolkit.layers.experts.reference.reference_experts`, differentiable once.

    Shapes: x (tokens, dim) -> (tokens, dim).

    Args:
        x: the tokens.
        assignment: which experts each goes to.
        weights: of all experts, in x's dtype.
        activation: between an expert's two products.
        recompute: keep only x for the backward pass, and compute the pre-activations again there.
        backend: ``"cpu"`` or ``"triton"``.
    """
    parts = weights.first, weights.second, weights.first_bias, weights.second_bias
    keep_less = recompute or not torch.is_grad_enabled()  # without a backward pass nothing needs to be kept
    how = activation.name, activation.alpha, activation.limit, keep_less, backend
    out: Tensor = experts_operator(x, assignment.weight, assignment.token, assignment.expert, *parts, *how)[0]
    return out


@torch.library.custom_op("toolkit::experts", mutates_args=())
def experts_operator(
    x: Tensor,
    weight: Tensor,
    token: Tensor,
    expert: Tensor,
    first: Tensor,
    second: Tensor,
    first_bias: Tensor | None,
    second_bias: Tensor | None,
    activation: str,
    alpha: float,
    limit: float,
    recompute: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """out (tokens, dim), and for the backward pass: pre-activations, and the order, tokens and ends of sorted rows.

    Shapes: x (tokens, dim); weight, token, expert (n,); first (experts, width, dim); second (experts, dim,
    hidden_dim); the rest is as in :func:`operator_experts`.
    """
    rows = sort_by_expert(token, expert, len(first))
    out, hidden = backend_module(backend).forward(
        x,
        weight,
        rows,
        token_starts(token, len(x)),
        Weights(first, second, first_bias, second_bias),
        Activation(activation, alpha, limit),
        not recompute,
    )
    return out, hidden, rows.order, rows.token, rows.ends


@experts_operator.register_fake
def _(
    x: Tensor, weight: Tensor, token: Tensor, expert: Tensor, first: Tensor, second: Tensor, first_bias: Tensor | None,
    second_bias: Tensor | None, activation: str, alpha: float, limit: float, recompute: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    kept = 0 if recompute else backend_module(backend).kept_rows(len(weight), x.dtype)
    ends = expert.new_empty(len(first), dtype=torch.int32)
    return (
        x.new_empty(x.shape),  # contiguous, however x is laid out
        x.new_empty(kept, first.shape[1]),
        torch.empty_like(token),
        torch.empty_like(token),
        ends,
    )


@torch.library.custom_op("toolkit::experts_backward", mutates_args=())
def experts_backward_operator(
    d_out: Tensor,
    x: Tensor,
    weight: Tensor,
    token: Tensor,
    first: Tensor,
    second: Tensor,
    first_bias: Tensor | None,
    second_bias: Tensor | None,
    hidden: Tensor,
    order: Tensor,
    row_token: Tensor,
    ends: Tensor,
    activation: str,
    alpha: float,
    limit: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight, first, second and the biases (of no elements where there are none)."""
    d_x, d_weight, d_weights = backend_module(backend).backward(
        d_out,
        x,
        weight,
        ExpertRows(order, row_token, ends),
        token_starts(token, len(x)),
        Weights(first, second, first_bias, second_bias),
        Activation(activation, alpha, limit),
        hidden,
    )
    d_first_bias, d_second_bias = (
        x.new_empty(0) if bias is None else bias for bias in (d_weights.first_bias, d_weights.second_bias)
    )
    return d_x, d_weight, d_weights.first, d_weights.second, d_first_bias, d_second_bias


@experts_backward_operator.register_fake
def _(
    d_out: Tensor, x: Tensor, weight: Tensor, token: Tensor, first: Tensor, second: Tensor, first_bias: Tensor | None,
    second_bias: Tensor | None, *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    biases = (x.new_empty(0) if b is None else b.new_empty(b.shape) for b in (first_bias, second_bias))
    return (*(tensor.new_empty(tensor.shape) for tensor in (x, weight, first, second)), *biases)  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, token, _, first, second, first_bias, second_bias, *settings = inputs
    activation, alpha, limit, _, backend = settings
    ctx.settings = activation, alpha, limit, backend
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, weight, token, first, second, first_bias, second_bias, *output[1:])


def _differentiate(ctx: Any, d_out: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    refuse_double_backward("the experts' operator")
    tensors = ctx.saved_tensors
    d_x, d_weight, d_first, d_second, *d_biases = experts_backward_operator(d_out.contiguous(), *tensors, *ctx.settings)
    biases = (None if bias is None else gradient for bias, gradient in zip(tensors[5:7], d_biases, strict=True))
    return d_x, d_weight, None, None, d_first, d_second, *biases, None, None, None, None, None


experts_operator.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.toolkit.experts, get_raw=True)
def experts_flops(
    x: Tensor, weight: Tensor, token: Tensor, expert: Tensor, first: Tensor, second: Tensor, *_: Any, **__: Any
) -> int:
    """Two products a triple that has an expert, two operations for each multiply-add."""
    return _product_flops(len(expert) if _has_no_data(expert) else int((expert >= 0).sum()), first, second)


@register_flop_formula(torch.ops.toolkit.experts_backward, get_raw=True)
def experts_backward_flops(
    d_out: Tensor, x: Tensor, weight: Tensor, token: Tensor, first: Tensor, second: Tensor, *rest: Any, **__: Any
) -> int:
    """Twice the forward pass: a gradient for each operand of each product; recomputation is not counted."""
    ends: Tensor = rest[5]
    return 2 * _product_flops(len(token) if _has_no_data(ends) else int(ends[-1]), first, second)


def _product_flops(rows: int, first: Tensor, second: Tensor) -> int:
    return 2 * rows * (first[0].numel() + second[0].numel())


def _has_no_data(tensor: Tensor) -> bool:
    """A traced tensor: which triples have an expert is not known, so all are taken to."""
    return isinstance(tensor, FakeTensor) or tensor.is_meta
