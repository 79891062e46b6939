"""What is kept: the newest few whatever their size, more only where all are small; a ring's plans among them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from toolkit.attention import Causal, Documents, attention
from toolkit.attention.held import ENTRY_BYTES, HELD, HELD_BYTES, Held
from toolkit.attention.plan import _held


def fill(held: Held[Tensor], keys: range, nbytes: int) -> None:
    for key in keys:
        held.get(key, partial(torch.empty, nbytes, dtype=torch.uint8), lambda made: [made])


def test_large_ones_are_kept_up_to_a_number() -> None:
    held: Held[Tensor] = Held()
    fill(held, range(3 * HELD), HELD_BYTES)
    assert len(held) == HELD
    fill(held, range(2 * HELD, 3 * HELD), HELD_BYTES)
    assert held.made == 3 * HELD


def test_small_ones_are_kept_up_to_a_size() -> None:
    held: Held[Tensor] = Held()
    room = HELD_BYTES // (2 * ENTRY_BYTES)
    fill(held, range(room), ENTRY_BYTES)
    fill(held, range(room), ENTRY_BYTES)
    assert len(held) == held.made == room
    fill(held, range(room, room + 10), ENTRY_BYTES)
    assert len(held) == room
    fill(held, range(1), ENTRY_BYTES)  # the oldest left first
    assert held.made == room + 11


def test_one_that_is_used_again_stays() -> None:
    held: Held[Tensor] = Held()
    for key in range(1, 3 * HELD):
        fill(held, range(1), HELD_BYTES)
        fill(held, range(key, key + 1), HELD_BYTES)
    assert held.made == 3 * HELD


def test_the_steps_of_a_ring_are_planned_once_for_several_layers_and_their_backward_passes() -> None:
    """As a ring of 8 ranks calls attention: 2 chunks of queries meet 16 of keys, layer after layer."""
    pattern = Causal() & Documents.from_lengths([[5, 20, 7]])
    chunks = [(2 * place, 2 * place + 2) for place in range(16)]
    q, k = (torch.randn(1, 1, 32, 16, requires_grad=True) for _ in range(2))
    made = []
    for _ in range(3):
        outs = [
            attention(q[:, :, slice(*rows)], *[k[:, :, slice(*keys)]] * 2, pattern, q_start=rows[0], kv_start=keys[0])
            for rows in (chunks[0], chunks[15])
            for keys in chunks
        ]
        torch.stack(outs).sum().backward()
        made.append(_held.made)
    assert made[0] == made[1] == made[2]
