"""A kernel compiled for cards that are not here: the specialisation, what is read, and that faults are found."""

# mypy: disallow-untyped-defs=False
from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl

from toolkit.kernels.compile import Resources, compile_for, faults
from toolkit.kernels.families import FAMILIES
from toolkit.kernels.launch import Recorded

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET", "0") == "1", reason="kernels are interpreted here")


@triton.jit
def square_kernel(x, y, n, BLOCK: tl.constexpr):
    """``y = x x`` for a square matrix of BLOCK rows, n apart."""
    row = tl.arange(0, BLOCK)
    at = row[:, None] * n + row[None, :]
    value = tl.load(x + at)
    tl.store(y + at, tl.dot(value, value).to(y.dtype.element_ty))


def launch(dtype: torch.dtype) -> Recorded:
    matrix = torch.zeros(32, 32, dtype=dtype)
    tile = SimpleNamespace(num_warps=4, num_stages=2, waves_per_eu=1)
    return Recorded(square_kernel, tile, {"x": matrix, "y": matrix, "n": 32, "BLOCK": 32})


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_kernel_takes_is_read(family: str) -> None:
    found = compile_for(launch(torch.float16), family)
    assert found.registers > 0 and found.count > 0 and not found.trapped
    assert faults(found, family, element=2, multiplies=True, stack_limit=0) == []


def test_each_fault_is_found() -> None:
    good = Resources(100, 0, 0, 1000, "mma.sync", 8, False)

    def found(wrong: Resources, element: int = 2, family: str = "sm80", stack_limit: int | None = 0) -> list[str]:
        return faults(wrong, family, element=element, multiplies=True, stack_limit=stack_limit)

    assert found(good) == []
    assert found(replace(good, trapped=True)) == ["compiled to a trap"]
    assert found(replace(good, shared=101_377)) == ["shared 101377 above 101376"]
    assert found(replace(good, instruction="", count=0)) == ["no tensor-core instruction"]
    assert found(good, element=4) == ["mma.sync rounds fp32 to TF32"]
    assert found(good, element=4, family="gfx942") == []
    assert found(replace(good, stack=8)) == ["stack 8 above 0, 0 spills"]
    assert found(replace(good, spills=2), family="gfx942") == ["stack 0 above 0, 2 spills"]
    assert found(replace(good, stack=8), stack_limit=8) == found(replace(good, stack=8), stack_limit=None) == []
