"""Kernels compiled for cards that are not here: no trap, no spill, tensor cores used, shared memory within budget.

The kernels must not be interpreted ones, so this file needs a process without ``TRITON_INTERPRET``: a plain pytest.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import pytest
import torch

from toolkit.attention.kernels.config import KERNELS, Tile
from toolkit.kernels.families import FAMILIES

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET", "0") == "1", reason="kernels are interpreted here")

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# One head_dim for each dtype and family, the kernels and features spread over them.
SPREAD = [
    (64, torch.float16, "sm80", "dropout", "keys"),
    (128, torch.bfloat16, "sm80", "scored", "forward"),
    (64, torch.float32, "sm80", "scored", "queries"),
    (64, torch.float16, "sm90", "scored", "forward"),
    (128, torch.bfloat16, "sm90", "scored", "keys"),
    (128, torch.bfloat16, "sm90", "dropout", "queries"),
    (64, torch.float32, "sm90", "scored", "forward"),
    (128, torch.float16, "sm100", "scored", "queries"),
    *((64, torch.float16, "sm90", "listed", kernel) for kernel in KERNELS),
    (64, torch.bfloat16, "sm100", "scored", "keys"),
    (64, torch.float32, "sm100", "plain", "queries"),
    (128, torch.float16, "gfx942", "dropout", "forward"),
    (128, torch.bfloat16, "gfx942", "scored", "keys"),
    (64, torch.bfloat16, "gfx942", "scored", "decode"),
    (64, torch.float32, "gfx942", "scored", "queries"),
]


def check(head_dim: int, dtype: torch.dtype, family: str, features: str, kernels: tuple[str, ...]) -> None:
    from toolkit.attention.kernels.resources import faults, shipped_launches
    from toolkit.kernels.compile import compile_for

    for launch in shipped_launches(head_dim, dtype, family, features):
        if launch.name in kernels:
            found = compile_for(launch, family)
            assert not faults(found, launch, family), (launch.name, launch.tile, found)


@pytest.mark.parametrize(("head_dim", "dtype", "family", "features", "kernel"), SPREAD)
def test_a_spread_of_shipped_configurations(
    head_dim: int, dtype: torch.dtype, family: str, features: str, kernel: str
) -> None:
    check(head_dim, dtype, family, features, (kernel,))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_that_only_add_up(family: str) -> None:
    check(64, torch.float16, family, "scored", ("delta", "combine"))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("head_dim", "dtype", "features"), list(itertools.product((64, 128, 256), DTYPES, ("plain", "scored", "dropout")))
)
def test_every_shipped_configuration(family: str, head_dim: int, dtype: torch.dtype, features: str) -> None:
    check(head_dim, dtype, family, features, KERNELS)


def test_a_tile_too_large_is_found_out() -> None:
    from toolkit.attention.kernels.resources import faults, shipped_launches
    from toolkit.kernels.compile import compile_for

    (launch,) = (one for one in shipped_launches(64, torch.float16, "sm80") if one.name == "forward")
    crowded = replace(launch, tile=Tile(64, 64, num_warps=1), arguments={**launch.arguments, "BLOCK_M": 64})
    found = compile_for(crowded, "sm80")
    (wrong,) = faults(found, crowded, "sm80")
    assert found.stack > 0 and wrong == f"stack {found.stack} above 0, 0 spills"
    assert faults(replace(found, stack=0, shared=101_377), crowded, "sm80") == ["shared 101377 above 101376"]
    assert faults(replace(found, stack=0, spills=1), crowded, "gfx942") == ["stack 0 above 0, 1 spills"]


def test_a_kernel_without_tensor_cores_or_without_code_is_found_out() -> None:
    from toolkit.attention.kernels.resources import faults, shipped_launches
    from toolkit.kernels.compile import Resources

    launch = shipped_launches(64, torch.float16, "sm90")[0]
    assert faults(Resources(100, 0, 0, 1000, "wgmma.mma_async", 8, False), launch, "sm90") == []
    assert faults(Resources(100, 0, 0, 1000, "", 0, False), launch, "sm90") == ["no tensor-core instruction"]
    assert faults(Resources(8, 0, 0, 0, "wgmma.mma_async", 8, True), launch, "sm90") == ["compiled to a trap"]


def test_fp32_that_would_be_rounded_to_tf32_is_found_out() -> None:
    from toolkit.attention.kernels.resources import faults, shipped_launches
    from toolkit.kernels.compile import Resources

    launch = shipped_launches(64, torch.float32, "sm100")[0]
    assert launch.arguments["PRECISION"] == "ieee"
    assert faults(Resources(100, 0, 0, 1000, "", 0, False), launch, "sm100") == []
    rounded = Resources(100, 0, 0, 1000, "tcgen05.mma", 32, False)
    assert faults(rounded, launch, "sm100") == ["tcgen05.mma rounds fp32 to TF32"]


@pytest.mark.parametrize("kernel", ["forward", "decode"])
def test_sm100_multiplies_fp32_exactly(kernel: str) -> None:
    check(64, torch.float32, "sm100", "scored", (kernel,))


def test_launches_are_recorded_in_order_and_not_started() -> None:
    from toolkit.attention.kernels.resources import shipped_launches

    names = [launch.name for launch in shipped_launches(64, torch.float16, "sm90")]
    assert names == ["forward", "delta", "queries", "keys", "decode", "combine"]
    listed = shipped_launches(64, torch.float16, "sm90", "listed")
    assert [launch.name for launch in listed] == names
    for launch in listed:
        if launch.name in KERNELS:
            assert all(launch.arguments[name] is not None for name in ("rows", "columns"))
            assert launch.name == "decode" or launch.arguments["heads"].tolist() == [1, 1, 0, 0]
            assert launch.arguments.get("CONTINUE", True) and launch.arguments.get("ACCUMULATE", True)
    with pytest.raises(ValueError, match="features='fancy'"):
        shipped_launches(64, torch.float16, "sm90", "fancy")
