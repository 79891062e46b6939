"""One call of attention on its way to the kernels: inputs laid out, arguments by pass, and the launch itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toolkit.attention.kernels.arguments import (
    Launch,
    check_inputs,
    choose_tile,
    launches,
    pass_arguments,
    run_arguments,
    scoring_arguments,
    size_arguments,
    strides,
    with_unit_stride,
)
from toolkit.attention.kernels.config import Tile
from toolkit.attention.plan import Pass
from toolkit.attention.schedule import schedule
from toolkit.attention.scoring import Scoring

Tiles = Mapping[str, Tile]


@dataclass(frozen=True)
class Call:
    """The inputs of one attention, laid out for the kernels."""

    q: Tensor
    k: Tensor
    v: Tensor
    launches: list[Launch]
    fixed: dict[str, Any]  # arguments that no pass changes
    tiles: Tiles | None

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        passes: Sequence[Pass],
        scoring: Scoring,
        q_start: int,
        kv_start: int,
        tiles: Tiles | None,
    ) -> Call:
        """Check the inputs and lay them out."""
        check_inputs(q, k, v, scoring)
        q, k, v = (with_unit_stride(x) for x in (q, k, v))
        fixed = {"q": q, "k": k, "v": v, **strides("q", q), **strides("k", k), **strides("v", v)}
        fixed |= {**size_arguments(q, k, v), **scoring_arguments(scoring, q_start, kv_start)}
        return cls(q, k, v, launches(passes, q.shape[1], q.device), fixed, tiles)

    def arguments(self, kernel: str, launch: Launch, rows: int | None = None) -> tuple[Tile, dict[str, Any]]:
        """The tile of ``kernel`` in this launch, of ``rows`` rows if given, and the arguments that go with it."""
        part = launch.part
        dropout = self.fixed["seed"] is not None
        tile = choose_tile(self.tiles, kernel, self.q, self.v, dropout, part.n_rows, part.n_columns)
        plan = schedule(part, rows or tile.block_m, tile.block_n)
        by_columns = kernel == "keys"
        full, partial = (plan.full_transposed, plan.partial_transposed) if by_columns else (plan.full, plan.partial)
        return tile, {
            **self.fixed,
            **pass_arguments(part, self.fixed["kv_start"]),
            **run_arguments(full, partial),
            "heads": launch.heads,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
        }


def run(kernel: Any, grid: tuple[int, int, int], tile: Tile, arguments: dict[str, Any]) -> None:
    """Launch ``kernel`` with those of ``arguments`` it takes; a grid without programs is no launch."""
    if 0 not in grid:
        LAUNCHER.get()(kernel, grid, tile, {name: arguments[name] for name in kernel.arg_names})


def _start(kernel: Any, grid: tuple[int, int, int], tile: Tile, taken: dict[str, Any]) -> None:
    options: dict[str, int] = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    if tile.waves_per_eu and torch.version.hip is not None:
        options["waves_per_eu"] = tile.waves_per_eu
    with _on(next(value.device for value in taken.values() if isinstance(value, Tensor))):
        kernel[grid](**taken, **options)


LAUNCHER: ContextVar[Callable[..., None]] = ContextVar("launcher", default=_start)
"""What starts a kernel; a check that only compiles the launches puts its own here."""


def sink_logits(scoring: Scoring) -> Tensor | None:
    """(heads,) fp32."""
    return None if scoring.sink_logits is None else scoring.sink_logits.float().contiguous()


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
