"""How a kernel is started, in one place, so that a check can record the launches of a call instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Tile(Protocol):
    """What a launch needs to know of a tile, beside the sides that its arguments hold."""

    @property
    def num_warps(self) -> int:
        """Warps of a program."""

    @property
    def num_stages(self) -> int:
        """Stages of its pipeline of loads."""

    @property
    def waves_per_eu(self) -> int:
        """Waves of an execution unit that AMD's compiler should aim at; 0 leaves it the choice."""


@dataclass(frozen=True)
class Recorded:
    """A launch that was not started."""

    kernel: Any
    tile: Tile
    arguments: dict[str, Any]
    grid: tuple[int, int, int] = (1, 1, 1)

    @property
    def name(self) -> str:
        """Of the kernel, without its suffix."""
        return str(self.kernel.__name__).removesuffix("_kernel")


def run(kernel: Any, grid: tuple[int, int, int], tile: Tile, arguments: dict[str, Any]) -> None:
    """Launch ``kernel`` with those of ``arguments`` it takes; a grid without programs is no launch."""
    if 0 not in grid:
        LAUNCHER.get()(kernel, grid, tile, {name: arguments[name] for name in kernel.arg_names})


@contextmanager
def recording() -> Iterator[list[Recorded]]:
    """Launches inside it are recorded, not started."""
    found: list[Recorded] = []

    def record(kernel: Any, grid: tuple[int, int, int], tile: Tile, arguments: dict[str, Any]) -> None:
        found.append(Recorded(kernel, tile, arguments, grid))

    token = LAUNCHER.set(record)
    try:
        yield found
    finally:
        LAUNCHER.reset(token)


def _start(kernel: Any, grid: tuple[int, int, int], tile: Tile, taken: dict[str, Any]) -> None:
    options: dict[str, int] = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    if tile.waves_per_eu and torch.version.hip is not None:
        options["waves_per_eu"] = tile.waves_per_eu
    with _on(next(value.device for value in taken.values() if isinstance(value, Tensor))):
        kernel[grid](**taken, **options)


LAUNCHER: ContextVar[Callable[..., None]] = ContextVar("launcher", default=_start)
"""What starts a kernel; a check that only compiles the launches puts its own here."""


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
