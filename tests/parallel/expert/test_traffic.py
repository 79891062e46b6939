"""What the formula of bytes says by itself; test_layer.py holds it to what is counted."""

from __future__ import annotations

from toolkit.parallel.expert import ExchangedBytes, exchanged_bytes

SIZES = {"dim": 8, "itemsize": 2, "gate_itemsize": 4, "num_experts": 4}


def test_one_process_sends_nothing() -> None:
    assert exchanged_bytes(0, 0, **SIZES, ranks=1) == ExchangedBytes()


def test_a_backward_pass_sends_the_gradients_of_what_was_sent_by_the_other_side() -> None:
    here, there = (exchanged_bytes(*rows, **SIZES, ranks=2, backward=False) for rows in ((5, 3), (3, 5)))
    both = exchanged_bytes(5, 3, **SIZES, ranks=2)
    assert both.rows == here.rows + there.rows  # as many rows come as go, dispatch and combine together
    assert both.gates == here.gates + there.gates
    assert both.counts == here.counts
    assert both.total == both.rows + both.gates + both.counts
