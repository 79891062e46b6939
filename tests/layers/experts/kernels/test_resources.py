"""Kernels compiled for cards that are not here: no trap, no spill, tensor cores used, shared memory within budget.

The kernels must not be interpreted ones, so this file needs a process without ``TRITON_INTERPRET``: a plain pytest.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import pytest
import torch

from toolkit.kernels.families import FAMILIES
from toolkit.layers.experts.activations import ACTIVATIONS
from toolkit.layers.experts.kernels.config import DTYPES, KERNELS, Tile, fit_tile, shipped_tile

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET", "0") == "1", reason="kernels are interpreted here")

SIZES = (1024, 512)
OFTEN, ODD = (1000, 344), (509, 251)
"""Multiples of 16 bytes, but not of a tile; and of nothing: read by the element."""
# The kernels and activations spread over dtypes and families; of two launches of a kernel, one and then the other.
SPREAD = [
    (SIZES, torch.float16, "sm80", "clamped_swiglu", "gradient", 0),
    (SIZES, torch.bfloat16, "sm80", "swiglu", "hidden", 0),
    (OFTEN, torch.float16, "sm80", "swiglu", "outer", 0),
    (SIZES, torch.float32, "sm80", "gelu", "hidden", 0),
    (SIZES, torch.bfloat16, "sm90", "relu2", "hidden", 0),
    (OFTEN, torch.bfloat16, "sm90", "swiglu", "gradient", 0),
    (SIZES, torch.float16, "sm90", "swiglu", "product", 1),
    (ODD, torch.float16, "sm90", "gelu", "product", 0),
    (SIZES, torch.bfloat16, "sm100", "clamped_swiglu", "gradient", 0),
    (SIZES, torch.float16, "sm100", "swiglu", "outer", 1),
    (SIZES, torch.float32, "sm100", "swiglu", "product", 1),
    (SIZES, torch.float16, "gfx942", "clamped_swiglu", "hidden", 0),
    (OFTEN, torch.bfloat16, "gfx942", "swiglu", "outer", 1),
    (SIZES, torch.float32, "gfx942", "swiglu", "gradient", 0),
]


def check(
    sizes: tuple[int, int],
    dtype: torch.dtype,
    family: str,
    activation: str,
    kernels: tuple[str, ...],
    which: int | None = None,
    tiles: dict[str, Tile] | None = None,
) -> None:
    from toolkit.kernels.compile import compile_for
    from toolkit.layers.experts.kernels.resources import faults, shipped_launches

    launches = shipped_launches(*sizes, dtype, family, activation, bias=True, tiles=tiles)
    launches = [launch for launch in launches if launch.name in kernels]
    for launch in launches if which is None else [launches[which]]:
        found = compile_for(launch, family)
        assert not faults(found, launch, family), (launch.name, launch.tile, found)


@pytest.mark.parametrize(("sizes", "dtype", "family", "activation", "kernel", "which"), SPREAD)
def test_a_spread_of_shipped_configurations(
    sizes: tuple[int, int], dtype: torch.dtype, family: str, activation: str, kernel: str, which: int
) -> None:
    check(sizes, dtype, family, activation, (kernel,), which)


@pytest.mark.parametrize("family", ["sm80", "gfx942"])
def test_the_kernels_that_only_add_up(family: str) -> None:
    check(ODD, torch.float16, family, "swiglu", ("combine", "weight", "bias"))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [SIZES, OFTEN, ODD], ids=str)
def test_every_shipped_configuration(family: str, dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    for activation in ACTIVATIONS:
        plain = activation != "swiglu"  # the other kernels do not know the activation
        kernels = ("hidden", "gradient") if plain else (*KERNELS, "combine", "weight", "bias")
        check(sizes, dtype, family, activation, kernels)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "dtype"), list(itertools.product(FAMILIES, (torch.bfloat16, torch.float32))))
@pytest.mark.parametrize("rows", [16, 32, 64])
def test_every_tile_cut_to_experts_of_few_rows(family: str, dtype: torch.dtype, rows: int) -> None:
    cut = {}
    for kernel in KERNELS:
        sides = (10**6, 10**6, rows) if kernel == "outer" else (rows, 10**6, 10**6)
        cut[kernel] = fit_tile(shipped_tile(kernel, dtype, family), *sides)
    check(SIZES, dtype, family, "clamped_swiglu", KERNELS, tiles=cut)


def test_a_tile_too_large_is_found_out() -> None:
    from toolkit.kernels.compile import compile_for
    from toolkit.layers.experts.kernels.resources import faults, shipped_launches

    crowded = {"gradient": Tile(64, 64, 32, num_warps=1)}
    launches = shipped_launches(*SIZES, torch.float16, "sm80", tiles=crowded)
    (launch,) = (one for one in launches if one.name == "gradient")
    found = compile_for(launch, "sm80")
    assert found.stack > 0 and faults(found, launch, "sm80") == [f"stack {found.stack} above 0, 0 spills"]
    assert faults(replace(found, stack=0, shared=101_377), launch, "sm80") == ["shared 101377 above 101376"]


def test_a_kernel_without_tensor_cores_or_with_rounded_fp32_is_found_out() -> None:
    from toolkit.kernels.compile import Resources
    from toolkit.layers.experts.kernels.resources import faults, shipped_launches

    exact, rounded = Resources(100, 0, 0, 1000, "", 0, False), Resources(100, 0, 0, 1000, "tcgen05.mma", 8, False)
    for dtype, right, wrong, message in (
        (torch.float16, rounded, exact, "no tensor-core instruction"),
        (torch.float32, exact, rounded, "tcgen05.mma rounds fp32 to TF32"),
    ):
        for launch in shipped_launches(*SIZES, dtype, "sm100"):
            multiplies = launch.name in KERNELS
            assert launch.arguments.get("PRECISION", "ieee") == "ieee"
            assert faults(right, launch, "sm100") == []
            assert faults(wrong, launch, "sm100") == ([message] if multiplies else [])


def test_launches_are_recorded_in_order_and_not_started() -> None:
    from toolkit.layers.experts.kernels.resources import shipped_launches

    names = [launch.name for launch in shipped_launches(*SIZES, torch.float16, "sm90", bias=True)]
    ahead, back = ["hidden", "product", "combine"], ["gradient", "weight", "outer", "outer", "bias", "bias"]
    assert names == [*ahead, *back, "product", "combine"]
    with pytest.raises(ValueError, match="activation='fancy'"):
        shipped_launches(*SIZES, torch.float16, "sm90", "fancy")
