"""A schedule visits the tiles that hold a visible pair, no other, and masks only those that hide one."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pattern_cases import CASES, PLACES, Case, LargestTensor, Place, as_on_a_gpu, held
from torch import Tensor
from torch.nn import functional as F

from toolkit.attention.patterns import (
    Causal,
    Documents,
    Full,
    GlobalTokens,
    Pattern,
    PerDocument,
    Sinks,
    SlidingWindow,
    Window,
)
from toolkit.attention.plan import Pass, make_plan, plan
from toolkit.attention.schedule import Runs, schedule

TILES = st.sampled_from([(4, 4), (8, 4), (4, 8), (3, 5), (32, 16)])


def tiles_of(part: Pass, block_m: int, block_n: int) -> tuple[Tensor, Tensor]:
    """Tiles some row sees some column of, and those every row sees whole: bool (batch, heads, tiles, columns)."""
    seen, columns = held(part, part.n_columns), -(-part.n_columns // block_n)
    real = torch.ones(part.n_rows, dtype=torch.bool) if part.rows is None else part.rows >= 0
    rest = -part.n_rows % block_m
    seen = F.pad(seen, (0, columns * block_n - part.n_columns, 0, rest))
    real = F.pad(real.expand(*seen.shape[:2], -1), (0, rest))
    tiles = seen.unflatten(3, (columns, block_n)).unflatten(2, (-1, block_m))  # (b, h, tiles, m, columns, n)
    some = tiles.any(dim=5).any(dim=3)
    rows_that_see_all = tiles.all(dim=5) | ~real.unflatten(2, (-1, block_m))[..., None]
    return some, rows_that_see_all.all(dim=3) & some


def check(part: Pass, block_m: int, block_n: int) -> None:
    some, whole = tiles_of(part, block_m, block_n)
    made = schedule(part, block_m, block_n)
    assert torch.equal(held(made.full, some.shape[3]), whole)
    assert torch.equal(held(made.partial, some.shape[3]), some & ~whole)
    assert torch.equal(held(made.full_transposed, some.shape[2]), whole.mT)
    assert torch.equal(held(made.partial_transposed, some.shape[2]), (some & ~whole).mT)
    assert made.visited() == int(some.sum())
    for runs in (made.full, made.partial, made.full_transposed, made.partial_transposed):
        real = runs.stop > runs.first
        assert torch.equal(real.sum(dim=-1, dtype=torch.int32), runs.count)
        assert not (real[..., 1:] & ~real[..., :-1]).any(), "an empty run before a real one"
        assert {x.dtype for x in (runs.first, runs.stop, runs.count)} == {torch.int32}


@pytest.mark.parametrize("form", [nullcontext, as_on_a_gpu], ids=["cpu", "gpu"])
@settings(max_examples=60)
@given(case=CASES, place=PLACES, tile=TILES)
def test_tiles_are_those_of_the_mask_in_the_pass_order(
    form: Any, case: Case, place: Place, tile: tuple[int, int]
) -> None:
    place.fits(case.pattern)
    with form():
        passes = make_plan(case.pattern, *place.args)
        for part in passes:
            made = schedule(part, *tile)
            _ = made.full, made.partial, made.full_transposed, made.partial_transposed
    for part in passes:
        check(part, *tile)


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (7, 8), (8, 7), (9, 9), (1, 1)])
def test_odd_ends_rows_past_the_last_do_not_count_and_columns_past_the_last_are_never_full(
    rows: int, columns: int
) -> None:
    (part,) = plan(Full(), rows, columns, 0)
    made = schedule(part, 4, 4)
    assert made.full.tiles() == -(-rows // 4) * (columns // 4)
    assert made.visited() == -(-rows // 4) * -(-columns // 4)


def test_empty_places_of_a_list_of_rows_do_not_keep_a_tile_from_being_full() -> None:
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, :3] = True
    mask[1, 0] = True
    *_, own = plan(Window(0, 0) | GlobalTokens(mask=mask), 16, 16)
    assert own.rows is not None and (own.rows < 0).any()
    made = schedule(own, 4, 4)
    assert made.partial.tiles() == 0
    assert made.full.tiles() == 2 * 4


def test_it_is_made_once_for_each_tile_size_and_moves_with_the_pass() -> None:
    (part,) = plan(Causal(), 32, 32)
    assert schedule(part, 8, 8) is schedule(part, 8, 8) is not schedule(part, 8, 4)
    moved = schedule(part.on(torch.device("meta")), 8, 8)
    assert moved.full.first.device.type == "meta"
    assert moved.full.first.shape == schedule(part, 8, 8).full.first.shape


def visited(pattern: Pattern, length: int = 8192) -> float:
    """Share of 128 x 64 tiles."""
    return sum(schedule(part, 128, 64).visited() for part in plan(pattern, length, length)) / (
        length // 128 * length // 64
    )


SCATTERED = torch.randperm(8192, generator=torch.Generator().manual_seed(0))[:32].tolist()


@pytest.mark.parametrize(
    ("pattern", "limit"),
    [
        ("SlidingWindow(512)", 0.076),
        ("(SlidingWindow(512) | Sinks(4))", 0.084),
        ("DilatedWindow(512, 4)", 0.08),
        (f"(SlidingWindow(512) | GlobalTokens(positions={SCATTERED}))", 0.105),
        ("Strided(128)", 0.06),
    ],
    ids=lambda x: x[:30] if isinstance(x, str) else "",
)
def test_the_share_of_tiles_visited_at_8192_tokens(pattern: str, limit: float) -> None:
    from toolkit.attention.parse import parse_pattern

    assert visited(parse_pattern(f"Causal() & {pattern}")) <= limit


MILLION = """
import json, resource, time, torch
torch.set_num_threads(1)
from toolkit.attention.parse import parse_pattern
from toolkit.attention.plan import plan
from toolkit.attention.schedule import schedule
pattern = parse_pattern("Causal() & (SlidingWindow(4096) | Sinks(4))")
plan(pattern, 64, 64)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
result, base = {}, peak()
for length in (2**19, 2**20):
    start = time.perf_counter()
    passes = plan(pattern, length, length)
    made = [schedule(part, 128, 64) for part in passes]
    runs = [run for one in made for run in (one.full, one.partial, one.full_transposed, one.partial_transposed)]
    kept = [x for run in runs for x in (run.first, run.stop, run.count)]
    kept += [x for part in passes for x in (part.first, part.stop)]
    result[length] = {
        "seconds": time.perf_counter() - start,
        "peak_mb": peak() - base,
        "kept_mb": sum(x.numel() * x.element_size() for x in kept) / 2**20,
        "area": pattern.area(length, length),
    }
print(json.dumps(result))
"""


def test_a_million_tokens_take_memory_that_is_linear_and_small() -> None:
    run = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True, check=True)
    result = json.loads(run.stdout)
    half, whole = result[str(2**19)], result[str(2**20)]
    print(f"a million tokens scheduled in {whole['seconds']:.2f} s")
    assert whole["peak_mb"] < 300
    assert whole["kept_mb"] <= 64
    assert whole["kept_mb"] <= 2.2 * half["kept_mb"]
    for length, row in ((2**19, half), (2**20, whole)):
        w, sinks = 4096, 4  # rows before the window's end see all behind them; the others w keys and the sinks
        late = length - w
        assert row["area"] == w * (w + 1) // 2 + late * w + sum(min(sinks, n) for n in range(1, late + 1))


def test_on_a_gpu_too_nothing_is_larger_than_the_runs_and_the_grid_of_tiles() -> None:
    length, tile = 8192, 32
    documents = Documents.from_lengths([[1000] * 8])
    for inner in (Causal(), Causal() & (SlidingWindow(256) | Sinks(4))):
        with LargestTensor() as largest, as_on_a_gpu():
            (part,) = make_plan(PerDocument(documents, inner), 8000, 8000)
            made = schedule(part, tile, tile)
            _ = made.full, made.partial, made.full_transposed, made.partial_transposed
        assert largest.numel <= 8 * length + 2 * (length // tile) ** 2


def test_runs_count_their_tiles() -> None:
    first = torch.tensor([[[[0, 5], [3, 9]]]], dtype=torch.int32)
    stop = torch.tensor([[[[2, 6], [3, 9]]]], dtype=torch.int32)
    assert Runs(first, stop, torch.tensor([[[2, 0]]])).tiles() == 3
