"""How a call becomes launches: recorded, not started. What they compute is tested where Triton interprets."""

from __future__ import annotations

import pytest
import torch
from kernel_passes import BUILDERS
from torch import Tensor

from toolkit.attention.kernels.launch import backward, can_decode, decode, forward
from toolkit.attention.plan import Pass
from toolkit.attention.scoring import Scoring
from toolkit.kernels.launch import Recorded, recording

BATCH, HEADS, KV_HEADS, LENGTH = 2, 4, 2, 30


def inputs(length: int = LENGTH, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor, Tensor]:
    heads = (HEADS, KV_HEADS, KV_HEADS)
    q, k, v = (torch.zeros(BATCH, n, m, 16, dtype=dtype) for n, m in zip(heads, (length, LENGTH, LENGTH), strict=True))
    return q, k, v


def passes(name: str, length: int = LENGTH) -> list[Pass]:
    return BUILDERS[name](BATCH, HEADS, length, LENGTH)


def of_kernel(found: list[Recorded], name: str) -> list[Recorded]:
    return [launch for launch in found if launch.name == name]


def run_both(name: str, scoring: Scoring) -> tuple[list[Recorded], tuple[Tensor, ...]]:
    q, k, v = inputs()
    with recording() as found:
        out, lse = forward(q, k, v, passes(name), scoring, 0, 0)
        dq, dk, dv, _ = backward(out, None, q, k, v, out, lse, passes(name), scoring, 0, 0)
    return found, (out, dq, dk, dv)


def test_one_pass_writes_results_in_their_own_dtype() -> None:
    found, results = run_both("causal", Scoring(1.0))
    assert [launch.name for launch in found] == ["forward", "delta", "queries", "keys"]
    forward_, _, queries, keys = found
    assert forward_.arguments["out"].dtype == queries.arguments["dq"].dtype == torch.float16
    assert (
        not forward_.arguments["CONTINUE"] and not queries.arguments["ACCUMULATE"] and not keys.arguments["ACCUMULATE"]
    )
    assert all(result.dtype == torch.float16 for result in results)


def test_several_passes_add_up_in_fp32() -> None:
    found, results = run_both("gathered", Scoring(1.0))
    assert [launch.arguments["CONTINUE"] for launch in of_kernel(found, "forward")] == [False, True]
    for launch in found:
        for name in ("dq", "dk", "dv"):
            assert name not in launch.arguments or launch.arguments[name].dtype == torch.float32
    assert all(launch.arguments["ACCUMULATE"] for launch in of_kernel(found, "keys"))
    assert all(result.dtype == torch.float16 for result in results)


def test_one_pass_over_listed_columns_adds_to_zeros() -> None:
    """Columns it does not list have a gradient too: none."""
    found, _ = run_both("residues", Scoring(1.0))
    assert all(launch.arguments["ACCUMULATE"] for launch in of_kernel(found, "keys"))


def test_the_sink_joins_the_first_launch_of_each_head_only() -> None:
    found, _ = run_both("some_heads", Scoring(1.0, sink_logits=torch.zeros(HEADS)))
    launches = of_kernel(found, "forward")
    assert [launch.arguments["heads"].tolist() for launch in launches] == [[1, 0, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0]]
    assert [launch.arguments["sinks"] is None for launch in launches] == [False, False, True]


def test_decoding_shares_out_no_more_tiles_than_there_are() -> None:
    q, k, v = inputs(length=1)
    with recording() as found:
        decode(q, k, v, passes("gathered", 1), Scoring(1.0), LENGTH - 1, 0, programs=1000)
    assert [launch.name for launch in found] == ["decode", "decode", "combine"]
    assert [launch.arguments["part_offset"] for launch in found[:2]] == [0, -(-LENGTH // found[0].tile.block_n)]


@pytest.mark.parametrize(
    ("name", "length", "possible"),
    [("causal", 32, True), ("causal", 33, False), ("by_head", 1, False), ("some_heads", 1, False)],
)
def test_decoding_needs_few_rows_and_heads_that_see_alike(name: str, length: int, possible: bool) -> None:
    built = BUILDERS[name](BATCH, HEADS, length, 40)
    assert all(can_decode(part, group=2) for part in built) == possible


def test_a_call_without_rows_or_columns_launches_nothing_for_them() -> None:
    none = torch.zeros(1, 1, 0, 1, dtype=torch.int32)
    q, k, v = inputs()
    with recording() as found:
        out, lse = forward(q[:, :, :0], k, v, [Pass(None, None, none, none, LENGTH)], Scoring(1.0), 0, 0)
    assert found == [] and out.shape == (BATCH, HEADS, 0, 16) and lse.shape == (BATCH, HEADS, 0)


def test_no_columns_give_no_gradient_launch_for_keys() -> None:
    none = torch.zeros(1, 1, LENGTH, 1, dtype=torch.int32)
    q, k, v = inputs()
    part = Pass(None, None, none, none, 0)
    with recording() as found:
        out, lse = forward(q, k[:, :, :0], v[:, :, :0], [part], Scoring(1.0), 0, 0)
        backward(out, None, q, k[:, :, :0], v[:, :, :0], out, lse, [part], Scoring(1.0), 0, 0)
    assert [launch.name for launch in found] == ["forward", "delta", "queries"]


@pytest.mark.parametrize("entry", ["forward", "backward", "decode"])
def test_bad_input_is_named(entry: str) -> None:
    q, k, v = inputs(dtype=torch.float64)
    where = passes("causal"), Scoring(1.0), 0, 0
    with pytest.raises(ValueError, match="dtype=torch.float64"):
        if entry == "backward":
            backward(q, None, q, k, v, q, q[..., 0], *where)
        else:
            {"forward": forward, "decode": decode}[entry](q, k, v, *where)
