"""One call of attention on its way to the kernels: inputs laid out, and the arguments of each pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


def sink_logits(scoring: Scoring) -> Tensor | None:
    """(heads,) fp32."""
    return None if scoring.sink_logits is None else scoring.sink_logits.float().contiguous()
