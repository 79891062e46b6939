"""Outputs and log-sum-exp against the fp64 textbook, on shapes the gradient cases do not reach; reruns bit-equal."""

from __future__ import annotations

import pytest
import torch
from interpreted_process import Interpreter
from kernel_cases import Case
from kernel_passes import BUILDERS

LONG = (130, 203)


@pytest.mark.parametrize("passes", BUILDERS)
def test_every_order_on_long_odd_lengths(interpreter: Interpreter, passes: str) -> None:
    case = Case(passes, group=2, lengths=LONG, dims=(24, 20), tile=(64, 32), sinks=True)
    assert interpreter("check_forward", case) <= 1


@pytest.mark.parametrize("dims", [(16, 16), (80, 96), (128, 64), (256, 16), (16, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_head_dim(interpreter: Interpreter, dims: tuple[int, int], dtype: torch.dtype) -> None:
    assert interpreter("check_forward", Case(dims=dims, dtype=dtype, lengths=(17, 33))) <= 1


def test_the_shipped_tiles(interpreter: Interpreter) -> None:
    assert interpreter("check_shipped_tiles", Case("sinks_and_window", lengths=(70, 90), dims=(64, 64))) <= 1


def test_queries_without_any_key_give_zero_and_the_sink(interpreter: Interpreter) -> None:
    assert interpreter("check_forward", Case("three_slots", sinks=True, dropout=True)) <= 1
    assert interpreter("check_forward", Case("three_slots", softcap=True)) <= 1


def test_large_scores_do_not_overflow(interpreter: Interpreter) -> None:
    interpreter("check_large_scores")
