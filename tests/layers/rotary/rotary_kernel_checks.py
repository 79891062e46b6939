"""What is checked of the kernel where it runs; each function raises an ``AssertionError`` that says what is off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from guard_bands import guarded
from rotary_kernel_cases import Case, build, turned
from torch import Tensor

from toolkit.layers.rotary.apply import plain_rotate_pairs, rotate_pairs
from toolkit.layers.rotary.operator import rotate_operator, runs_kernel


def results(rotate: Callable[..., Tensor], case: Case, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Output and gradient."""
    x, d_out, cos, sin = build(case, device)
    x.requires_grad_()
    out = rotate(x, cos, sin, case.interleaved, case.heads)
    (d_x,) = torch.autograd.grad(out, x, d_out)
    return out.detach(), d_x


def plain(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, heads: int) -> Tensor:
    """By plain torch."""
    return torch.cat([plain_rotate_pairs(x[:, :heads], cos, sin, interleaved), x[:, heads:]], 1)


def check(case: Case, device: str = "cpu") -> None:
    """Output and gradient: at most twice the error of plain torch and 4 ulp; what is not rotated to the bit."""
    x, d_out, cos, sin = build(case, device)
    assert runs_kernel(x, cos)
    if device == "cpu":
        with guarded():
            got = results(rotate_pairs, case)
    else:
        got = results(rotate_pairs, case, device)
    settings = case.interleaved, case.heads
    exact = turned(x, cos, sin, *settings), turned(d_out, cos, -sin, *settings)
    for name, mine, theirs, right, source in zip(
        ("out", "d_x"), got, results(plain, case, device), exact, (x, d_out), strict=True
    ):
        assert (mine.shape, mine.dtype) == (x.shape, x.dtype), name
        error, bound = ((value.double() - right).abs().max().item() for value in (mine, theirs))
        bound = 2 * bound + 4 * torch.finfo(x.dtype).eps * right.abs().max().item()
        assert error <= bound, f"{name}: error {error:.3g}, bound {bound:.3g}"
        assert torch.equal(mine[:, case.heads :], source[:, case.heads :]), f"{name}: heads that pass"
        assert torch.equal(mine[..., case.dims[1] :], source[..., case.dims[1] :]), f"{name}: dims that pass"
    assert got[0].is_contiguous() and got[0].untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    if case.lies == "projected":
        assert got[1].transpose(1, 2).is_contiguous(), "the gradient lies in another order than x"


def check_infinities() -> None:
    """They stay in their pair, and in a head that passes they do not meet even that."""
    x = torch.zeros(1, 2, 3, 8)
    x[0, :, 1, 2] = x[0, :, 2, 7] = torch.inf
    cos, sin = torch.ones(1, 3, 4), torch.ones(1, 3, 4)
    out = rotate_pairs(x, cos, sin, False, 1)
    assert torch.equal(out[:, 1], x[:, 1])
    assert out[0, 0].isinf().nonzero().tolist() == [[1, 2], [1, 6], [2, 3], [2, 7]] and not out.isnan().any()


def check_operator(case: Case) -> None:
    """Torch's own checks of an operator: schema, fake tensors and their strides, autograd, compiling by parts."""
    x, _, cos, sin = build(case)
    for inverse, rows_first in ((False, False), (True, True)):
        given = x.requires_grad_(), cos, sin, case.interleaved, case.heads, inverse, rows_first
        torch.library.opcheck(rotate_operator, given)


def check_compiled(case: Case) -> None:
    """Whole, with its gradient, and the same to the bit."""
    compiled: Any = torch.compile(rotate_pairs, fullgraph=True, backend="aot_eager")
    for mine, eager in zip(results(compiled, case), results(rotate_pairs, case), strict=True):
        assert torch.equal(mine, eager) and mine.stride() == eager.stride()


def check_second_derivative() -> None:
    """The gradient's gradient is the rotation again."""
    x, d_out, cos, sin = build(Case(interleaved=True))
    d_out.requires_grad_()
    out = rotate_pairs(x.requires_grad_(), cos, sin, True)
    (d_x,) = torch.autograd.grad(out, x, d_out, create_graph=True)
    (again,) = torch.autograd.grad(d_x, d_out, x.detach())
    assert torch.equal(again, out.detach())


def check_learned_tables_are_refused() -> None:
    """A gradient by cos or sin would be lost."""
    x, _, cos, sin = build(Case())
    for tables in ((cos.requires_grad_(), sin), (cos.detach(), sin.requires_grad_())):
        try:
            rotate_pairs(x, *tables, False)
        except ValueError as error:
            assert "requires_grad=True: it must be False" in str(error)
        else:
            raise AssertionError("taken")


def check_fp64_is_plain() -> None:
    """There is no kernel for it."""
    x, _, cos, sin = build(Case())
    assert not runs_kernel(x.double(), cos.double()) and not runs_kernel(x, cos.double())
    assert torch.equal(rotate_pairs(x.double(), cos, sin, False), plain_rotate_pairs(x.double(), cos, sin, False))
