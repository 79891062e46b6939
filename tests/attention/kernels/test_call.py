"""The layout of a call: strides, grids and options as the kernels get them."""

from __future__ import annotations

import pytest
import torch
from kernel_passes import BUILDERS

from toolkit.attention.kernels.call import Call, sink_logits
from toolkit.attention.kernels.config import Tile
from toolkit.attention.kernels.forward import forward_kernel
from toolkit.attention.scoring import Scoring
from toolkit.kernels.launch import recording, run


def call(tiles: dict[str, Tile] | None = None, kv_start: int = 0, name: str = "causal") -> Call:
    q = torch.zeros(2, 30, 4, 16).transpose(1, 2)
    k = torch.zeros(2, 2, 16, 30).mT
    return Call.of(q, k, k, BUILDERS[name](2, 4, 30, 30), Scoring(1.0), kv_start, kv_start, tiles)


def test_strided_inputs_are_read_where_they_are() -> None:
    made = call()
    assert made.fixed["q"].stride() == (30 * 4 * 16, 16, 4 * 16, 1)
    assert (made.fixed["q_head"], made.fixed["q_row"]) == (16, 64)
    assert made.fixed["k"].stride(-1) == 1  # the last axis was strided: a copy


def test_the_callers_tile_wins() -> None:
    mine = Tile(16, 32)
    made = call({"forward": mine})
    tile, arguments = made.arguments("forward", made.launches[0])
    assert tile is mine and (arguments["BLOCK_M"], arguments["BLOCK_N"]) == (16, 32)
    tile, _ = made.arguments("queries", made.launches[0])
    assert tile.block_m <= 32 and tile.block_n <= 32  # shipped, cut to 30 rows and columns


def test_keys_get_the_runs_of_their_own_columns() -> None:
    made = call({"keys": Tile(16, 16), "queries": Tile(16, 16)})
    _, keys = made.arguments("keys", made.launches[0])
    _, queries = made.arguments("queries", made.launches[0])
    assert queries["full_count"].tolist() == [[[0, 1]]] and keys["full_count"].tolist() == [[[1, 0]]]


@pytest.mark.parametrize(
    ("name", "kv_start", "quads"), [("causal", 4, True), ("causal", 5, False), ("residues", 4, False)]
)
def test_four_weights_share_a_counter_only_where_they_stand_together(name: str, kv_start: int, quads: bool) -> None:
    made = call(kv_start=kv_start, name=name)
    assert made.arguments("forward", made.launches[0])[1]["QUADS"] == quads


def test_a_kernel_gets_its_own_arguments_and_no_others() -> None:
    made = call()
    tile, arguments = made.arguments("forward", made.launches[0])
    more = {"out": made.q, "lse": made.q, "sinks": None, "CONTINUE": False, "unknown": 1}
    more |= {"out_batch": 1, "out_head": 1, "out_row": 1}
    with recording() as found:
        run(forward_kernel, (1, 1, 1), tile, arguments | more)
        run(forward_kernel, (0, 1, 1), tile, arguments | more)
    assert len(found) == 1 and set(found[0].arguments) == set(forward_kernel.arg_names)
    with pytest.raises(KeyError):
        run(forward_kernel, (1, 1, 1), tile, arguments)


def test_sink_logits_are_read_in_fp32() -> None:
    sinks = sink_logits(Scoring(1.0, sink_logits=torch.ones(4, dtype=torch.float16)))
    assert sinks is not None and sinks.dtype == torch.float32
    assert sink_logits(Scoring(1.0)) is None
