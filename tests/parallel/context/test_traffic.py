"""Bytes sent: as torch's sends see them, as the library counts them, as it predicts them, and by hand."""

from __future__ import annotations

import math

import context_attention_work
import pytest
from context_patterns import BATCH, HEADS, LENGTH, by_position
from gloo import run_processes

from toolkit.attention import Causal, Full, SlidingWindow

RANKS = 4
LOCAL = LENGTH // RANKS
WIDTHS = [1, 2, LOCAL, LOCAL + 1, LOCAL + 2, 2 * LOCAL + 1, 2 * LOCAL + 2, LENGTH, 5 * LENGTH]
PATTERNS = by_position()

CASES = {
    **{f"window {w}": ("ring", Causal() & SlidingWindow(w), "contiguous", 1, 8) for w in WIDTHS},
    **{f"causal {layout}": ("ring", Causal(), layout, 1, 8) for layout in ("contiguous", "zigzag")},
    "full": ("ring", Full(), "contiguous", 2, 8),
    "packed": ("ring", PATTERNS["restarting"], "zigzag", 2, 5),
    "listed": ("ring", PATTERNS["listed"], "contiguous", 2, 5),
    "per head": ("ring", PATTERNS["per_head"], "zigzag", 2, 5),
    **{f"ulysses {kv_heads}": ("ulysses", SlidingWindow(3), "zigzag", kv_heads, 8) for kv_heads in (1, 4)},
}
"""Method, pattern, layout, key heads, width of values."""

Sent = list[dict[str, dict[str, tuple[int, int, int]]]]


@pytest.fixture(scope="module")
def sent() -> Sent:
    """By rank and case: forward and backward, by torch's calls, by the library's count, and predicted."""
    return run_processes(RANKS, context_attention_work.all_sent_bytes, CASES)


def test_predicted_bytes_are_the_bytes_sent(sent: Sent) -> None:
    for found in sent:
        for name in CASES:
            for by_torch, counted, predicted in found[name].values():
                assert by_torch == counted == predicted, name


@pytest.mark.parametrize("width", WIDTHS)
def test_a_window_reaches_only_the_neighbours_it_needs(width: int, sent: Sent) -> None:
    part = BATCH * LOCAL * (8 + 8) * 4  # one key head, keys and values 8 wide, fp32
    for rank, found in enumerate(sent):
        # those after it, as far as the window of their first query reaches back
        neighbours = min(math.ceil((width - 1) / LOCAL), RANKS - 1 - rank)
        assert found[f"window {width}"]["forward"][0] == neighbours * part


@pytest.mark.parametrize(("layout", "chunks"), [("contiguous", [6, 4, 2, 0]), ("zigzag", [3, 4, 5, 6])])
def test_a_causal_ring_sends_no_chunk_that_nobody_sees(layout: str, chunks: list[int], sent: Sent) -> None:
    """In eighths of the sequence: contiguous rank r gives 2 to each of the 3 - r ranks after it; zigzag rank r its
    early one to all 3 others, and its late one to the r ranks before it, whose own late one is later still."""
    size = BATCH * (LENGTH // 8) * 16 * 4
    for rank, found in enumerate(sent):
        assert found[f"causal {layout}"]["forward"][0] == chunks[rank] * size
        got = chunks[RANKS - 1 - rank]  # time reversed, what is sent is what is received
        assert found[f"causal {layout}"]["backward"][0] == (chunks[rank] + got) * size  # it owes gradients of those


def test_a_full_ring_sends_everything_to_everyone(sent: Sent) -> None:
    for found in sent:
        everything = (RANKS - 1) * BATCH * 2 * LOCAL * 16 * 4
        assert found["full"]["forward"][0] == everything
        assert found["full"]["backward"][0] == 2 * everything


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_shared_out_heads_send_three_quarters_of_everything(kv_heads: int, sent: Sent) -> None:
    numbers = BATCH * LOCAL * (HEADS * 8 * 2 + 4 * 8 * 2)  # queries and outputs; keys and values, copied to 4 heads
    for found in sent:
        assert found[f"ulysses {kv_heads}"]["forward"][0] == numbers * 4 * 3 // 4
        assert found[f"ulysses {kv_heads}"]["backward"][0] == numbers * 4 * 3 // 4
