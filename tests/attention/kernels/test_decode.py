"""Decoding against the fp64 textbook: packed rows, shares that are empty, several passes, the sink counted once."""

from __future__ import annotations

import pytest
import torch
from interpreted_process import Interpreter
from kernel_cases import Case


@pytest.mark.parametrize("passes", ["causal", "sinks_and_window", "by_batch", "gathered", "residues"])
@pytest.mark.parametrize("programs", [1, 12])
def test_outputs_are_those_of_the_textbook(interpreter: Interpreter, passes: str, programs: int) -> None:
    case = Case(passes, group=4, lengths=(3, 150), dims=(24, 20), sinks=programs == 12, alibi=True, softcap=True)
    assert interpreter("check_decode", case, programs) <= 1


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_query(interpreter: Interpreter, group: int, dtype: torch.dtype) -> None:
    more = {"dropout": group == 2, "kv_start": 5, "first_head": 3}
    case = Case("causal", group, lengths=(1, 77), dtype=dtype, tile=(16, 32), **more)
    assert interpreter("check_decode", case, 64) <= 1


def test_more_programs_than_tiles(interpreter: Interpreter) -> None:
    assert interpreter("check_decode", Case("everything", group=2, lengths=(2, 20)), 1000) <= 1


def test_rows_that_see_nothing(interpreter: Interpreter) -> None:
    interpreter("check_blind_decode")


def test_a_pass_that_differs_by_head_takes_the_ordinary_way(interpreter: Interpreter) -> None:
    interpreter("check_decode_by_head")
