"""The kernel against the textbook in fp64, from poisoned memory; what it is given; and compiled for absent cards."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from interpreted_process import Interpreter
from rotary_kernel_cases import LEVELS, Case, pairwise

from toolkit.kernels.families import FAMILIES, next_power_of_two
from toolkit.kernels.launch import recording
from toolkit.layers.rotary.kernels.launch import DTYPES, Tile, rotate, shipped_tile

compiled = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET", "0") == "1", reason="kernels are interpreted here")


@pytest.mark.parametrize("case", pairwise(seed=1), ids=str)
def test_outputs_and_gradients_are_those_of_the_textbook(interpreter: Interpreter, case: Case) -> None:
    interpreter("check", case)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dims", LEVELS["dims"], ids=str)
def test_on_a_gpu_they_are_the_textbooks_too(dims: tuple[int, int], dtype: torch.dtype) -> None:
    from rotary_kernel_checks import check

    for interleaved in (False, True):
        for lies in ("contiguous", "projected", "columns", "shared"):
            check(Case(dims, dtype, lies, 1000, interleaved, own_rows=True, heads=3), "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_it_compiles_whole() -> None:
    from rotary_kernel_checks import results

    from toolkit.layers.rotary.apply import rotate_pairs

    case = Case((128, 64), torch.bfloat16, "projected", 1000)
    whole = torch.compile(rotate_pairs, fullgraph=True)
    for mine, eager in zip(results(whole, case, "cuda"), results(rotate_pairs, case, "cuda"), strict=True):
        assert torch.equal(mine, eager)


# Every family, dtype and layout, head_dims that are no power of two, or no multiple of 16, rotated in part or whole.
SPREAD = [
    ((128, 128), torch.bfloat16, False, "sm80"),
    ((80, 80), torch.float32, True, "sm80"),
    ((128, 128), torch.bfloat16, True, "sm90"),
    ((256, 64), torch.float16, False, "sm90"),
    ((36, 18), torch.float32, False, "sm100"),
    ((128, 64), torch.bfloat16, True, "sm100"),
    ((128, 128), torch.bfloat16, True, "gfx942"),
    ((96, 48), torch.float32, False, "gfx942"),
]


@compiled
@pytest.mark.parametrize(("dims", "dtype", "interleaved", "family"), SPREAD)
def test_a_spread_of_configurations_spills_nothing_and_leaves_room_for_others(
    dims: tuple[int, int], dtype: torch.dtype, interleaved: bool, family: str
) -> None:
    check_compiled(dims, dtype, interleaved, family)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_configuration(dtype: torch.dtype, family: str) -> None:
    for head_dim in (16, 36, 64, 80, 96, 128, 192, 256):
        for rotary_dim in {head_dim, head_dim // 2, head_dim // 4}:
            for interleaved in (False, True):
                check_compiled((head_dim, rotary_dim), dtype, interleaved, family)


def check_compiled(dims: tuple[int, int], dtype: torch.dtype, interleaved: bool, family: str) -> None:
    from toolkit.kernels.compile import compile_for
    from toolkit.layers.rotary.kernels.resources import faults, shipped_launch

    launch = shipped_launch(*dims, dtype, interleaved)
    found = compile_for(launch, family)
    assert not faults(found, launch, family), found


def test_a_kernel_that_crowds_its_card_is_found_out() -> None:
    from toolkit.kernels.compile import Resources
    from toolkit.layers.rotary.kernels.resources import faults, shipped_launch

    aligned, odd = (shipped_launch(dim, dim, torch.float32, False) for dim in (80, 36))
    good = Resources(64, 0, 0, 0, "", 0, False)
    assert faults(good, aligned, "sm90") == faults(replace(good, registers=128), odd, "sm90") == []
    assert faults(replace(good, registers=65), aligned, "sm90") == ["registers 65 above 64"]
    assert faults(replace(good, registers=129), odd, "sm90") == ["registers 129 above 128"]
    assert faults(replace(good, stack=8), aligned, "sm90") == ["stack 8 above 0, 0 spills"]
    assert faults(replace(good, spills=1), aligned, "gfx942") == ["stack 0 above 0, 1 spills"]


def test_programs_hold_every_element_once_and_tiles_fit_small_problems() -> None:
    for head_dim, heads, length in ((16, 1, 1), (80, 3, 5), (128, 40, 4096), (256, 6, 33), (8192, 2, 9)):
        tile = shipped_tile(head_dim, heads, length)
        assert tile.positions == next_power_of_two(tile.positions) < 2 * max(length, 1)
        assert tile.heads == next_power_of_two(tile.heads) < 2 * heads
        x, table = torch.zeros(2, heads, length, head_dim), torch.zeros(1, length, head_dim // 2)
        with recording() as found:
            rotate(x, table, table, torch.zeros_like(x), False, heads, False)
        tiles, groups, batch = found[0].grid
        assert batch == 2
        assert (tiles - 1) * tile.positions < length <= tiles * tile.positions
        assert (groups - 1) * tile.heads < heads <= groups * tile.heads


def test_a_projection_is_read_where_it_lies() -> None:
    qkv = torch.zeros(2, 9, 7 * 16).view(2, 9, 7, 16).transpose(1, 2)
    table, out = torch.zeros(1, 9, 8), torch.zeros(2, 5, 9, 16)
    with recording() as found:
        rotate(qkv[:, 1:6], table, table, out, False, 5, False, tile=Tile(4, 2))
        rotate(out.transpose(2, 3).contiguous().transpose(2, 3), table, table, out, False, 5, True)
        rotate(qkv[:, 1:6, :0], table[:, :0], table[:, :0], out[:, :, :0], False, 5, False)
    read, copied = (launch.arguments for launch in found)  # no positions are no launch
    assert read["x"].data_ptr() == qkv[:, 1].data_ptr() and read["x_head"] == 16 and read["x_row"] == 7 * 16
    assert read["table_batch"] == 0 and found[0].grid == (3, 3, 2) and read["sign"] == 1.0
    assert copied["x"].is_contiguous() and copied["sign"] == -1.0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"x": torch.zeros(2, 3, 5, 8, dtype=torch.float64)}, "dtype=torch.float64"),
        ({"x": torch.zeros(3, 5, 8)}, "x.shape"),
        ({"cos": torch.zeros(3, 5, 4)}, r"cos.shape=\(3, 5, 4\): it must be \(1 or 2, 5, at most 8 / 2\)"),
        ({"sin": torch.zeros(1, 4, 4)}, "sin.shape"),
        ({"cos": torch.zeros(1, 5, 5)}, "cos.shape"),
        ({"cos": torch.zeros(1, 5, 0)}, "cos.shape"),
        ({"sin": torch.zeros(1, 5, 3)}, r"sin.shape=\(1, 5, 3\): it must be \(1, 5, 4\), as cos has"),
        ({"sin": torch.zeros(1, 5, 4, dtype=torch.float64)}, "sin.dtype=torch.float64"),
        ({"cos": torch.zeros(1, 5, 4, device="meta")}, "cos.device"),
        ({"heads": 4}, "heads=4"),
    ],
)
def test_what_the_kernel_cannot_take_is_named(changes: dict[str, object], named: str) -> None:
    given = {"x": torch.zeros(2, 3, 5, 8), "cos": torch.zeros(1, 5, 4), "sin": torch.zeros(1, 5, 4), "heads": 3}
    given |= {"out": torch.zeros(2, 3, 5, 8), "interleaved": False, "inverse": False} | changes
    with pytest.raises(ValueError, match=named):
        rotate(**given)
