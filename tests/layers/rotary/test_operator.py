"""The rotation as an operator of torch: its schema, its compiling, its FLOPs, what it refuses, where it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from interpreted_process import Interpreter
from rotary_kernel_cases import Case
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from toolkit.layers.rotary import operator
from toolkit.layers.rotary.apply import plain_rotate_pairs, rotate_pairs
from toolkit.layers.rotary.operator import rotate_operator, runs_kernel

STRIDED = Case((8, 4), torch.bfloat16, length=3, interleaved=True, heads=3)


def test_opcheck_passes(interpreter: Interpreter) -> None:
    interpreter("check_operator", STRIDED)


def test_it_compiles_whole_with_its_gradient(interpreter: Interpreter) -> None:
    interpreter("check_compiled", STRIDED)


@pytest.mark.parametrize(
    "check", ["check_second_derivative", "check_learned_tables_are_refused", "check_fp64_is_plain", "check_infinities"]
)
def test_where_it_is_interpreted(interpreter: Interpreter, check: str) -> None:
    interpreter(check)


def test_it_is_no_work() -> None:
    """As other element-wise operators: only products of matrices are counted."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        x, table = torch.empty(2, 3, 5, 8, requires_grad=True), torch.empty(1, 5, 4)
        rotate_operator(x, table, table, False, 3, False, False).sum().backward()
    assert counter.get_flop_counts()["Global"] == {torch.ops.toolkit.rotate: 0}


def test_on_the_cpu_it_is_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "INTERPRETED", False)
    x, angles = torch.randn(2, 3, 5, 8), torch.randn(1, 5, 4)
    tables = angles.cos(), angles.sin()
    assert not runs_kernel(x, angles) and not runs_kernel(x.to("meta"), angles.to("meta"))
    assert torch.equal(rotate_pairs(x, *tables, True), plain_rotate_pairs(x, *tables, True))
    with pytest.raises(RuntimeError, match="toolkit::rotate on cpu: it needs tensors on a GPU, or TRITON_INTERPRET=1"):
        rotate_operator(x, *tables, True, 3, False, False)


@pytest.mark.parametrize("heads", [0, 1, 3])
def test_heads_behind_those_that_are_rotated_pass(heads: int) -> None:
    x, angles = torch.randn(2, 3, 5, 8), torch.randn(2, 5, 4)
    out = rotate_pairs(x, angles.cos(), angles.sin(), True, heads)
    assert out.data_ptr() != x.data_ptr() and torch.equal(out[:, heads:], x[:, heads:])
    whole = rotate_pairs(x, angles.cos(), angles.sin(), True)
    assert torch.equal(out[:, :heads], whole[:, :heads])


@pytest.mark.parametrize("heads", [-1, 4])
def test_heads_that_x_does_not_have_are_named(heads: int) -> None:
    x, angles = torch.randn(2, 3, 5, 8), torch.randn(1, 5, 4)
    with pytest.raises(ValueError, match=f"heads={heads}: it must be at least 0 and at most the 3 of x"):
        rotate_pairs(x, angles, angles, False, heads)


def test_without_triton_a_gpu_is_plain_torch_and_the_operator_says_what_it_lacks() -> None:
    program = (
        "import sys, torch; sys.modules['triton'] = None\n"
        "import toolkit.layers.rotary.operator as operator\n"
        "from torch._subclasses.fake_tensor import FakeTensorMode\n"
        "with FakeTensorMode(): assert not operator.runs_kernel(*[torch.empty(1, 1, 1, 2, device='cuda')] * 2)\n"
        "try: operator._kernels(torch.device('cuda'))\n"
        "except RuntimeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("toolkit::rotate needs the triton package"), done.stderr


def test_a_gpu_with_triton_takes_the_kernel_in_the_dtypes_it_has() -> None:
    assert operator.HAS_TRITON
    with FakeTensorMode():
        table = torch.empty(1, 5, 4, device="cuda")
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            x = torch.empty(2, 3, 5, 8, dtype=dtype, device="cuda")
            assert runs_kernel(x, table) == (dtype != torch.float64) and not runs_kernel(x, table.double())
