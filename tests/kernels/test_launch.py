"""The launcher: what a kernel gets, what is recorded in its place, and that it is put back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from toolkit.kernels.launch import LAUNCHER, recording, run


class Kernel:
    """What ``run`` asks of a compiled kernel."""

    arg_names = ("x", "n", "BLOCK")
    __name__ = "double_kernel"

    def __init__(self) -> None:
        self.started: list[tuple[Any, dict[str, Any]]] = []

    def __getitem__(self, grid: Any) -> Any:
        return lambda **taken: self.started.append((grid, taken))


TILE = SimpleNamespace(num_warps=8, num_stages=3, waves_per_eu=1)
ARGUMENTS = {"x": torch.zeros(2), "n": 2, "BLOCK": 16, "unknown": 1}


def test_a_kernel_is_started_with_its_own_arguments_and_the_options_of_its_tile() -> None:
    kernel = Kernel()
    run(kernel, (2, 1, 1), TILE, ARGUMENTS)
    ((grid, taken),) = kernel.started
    assert grid == (2, 1, 1)
    assert set(taken) == {"x", "n", "BLOCK", "num_warps", "num_stages"}  # waves_per_eu is AMD's alone
    assert (taken["num_warps"], taken["num_stages"]) == (8, 3)
    with pytest.raises(KeyError, match="BLOCK"):
        run(kernel, (1, 1, 1), TILE, {"x": ARGUMENTS["x"], "n": 2})


def test_a_grid_without_programs_is_no_launch() -> None:
    kernel = Kernel()
    run(kernel, (2, 0, 1), TILE, ARGUMENTS)
    assert kernel.started == []


def test_launches_are_recorded_and_not_started() -> None:
    kernel = Kernel()
    with recording() as found:
        run(kernel, (2, 1, 1), TILE, ARGUMENTS)
    (launch,) = found
    assert (launch.name, launch.grid, launch.tile, kernel.started) == ("double", (2, 1, 1), TILE, [])
    assert set(launch.arguments) == set(Kernel.arg_names)


def test_a_launcher_is_put_back_after_an_error() -> None:
    before = LAUNCHER.get()
    with pytest.raises(RuntimeError), recording():
        raise RuntimeError
    assert LAUNCHER.get() is before
