"""Sequences are cut and joined, and labels are shifted before they are cut."""

from __future__ import annotations

import context_attention_work
import torch
from gloo import run_processes

from toolkit.parallel.context import Layout, next_token_labels


def test_cutting_and_joining_are_inverse() -> None:
    for found in run_processes(2, context_attention_work.split_and_joined):
        assert len(found) == 4
        assert all(found.values())


def test_labels_across_the_borders_of_parts_are_the_next_parts_first_tokens() -> None:
    ids = torch.arange(16)[None] + 100
    layout = Layout("zigzag", 2, 16)
    labels = next_token_labels(ids)[0]
    for rank in range(2):
        expected = [100 + position + 1 if position < 15 else -100 for position in layout.positions(rank).tolist()]
        assert labels[layout.positions(rank)].tolist() == expected


def test_labels_stay_within_documents() -> None:
    sequence_ids = torch.tensor([[3, 3, 1, 1, -1, -1], [-1, 0, 0, 0, 5, -1]])
    ids = torch.arange(12).view(2, 6)
    expected = [[1, -100, 3, -100, -100, -100], [-100, 8, 9, -100, -100, -100]]
    assert next_token_labels(ids, sequence_ids).tolist() == expected
