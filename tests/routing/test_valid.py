"""Sums without padding."""

from __future__ import annotations

import torch

from toolkit.routing.valid import mean_over_valid, n_valid, only_valid

TABLE = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf], [5.0, 8.0]])
VALID = torch.tensor([True, False, True])


def test_padding_becomes_zero_even_if_it_is_not_a_number() -> None:
    assert only_valid(TABLE, VALID).tolist() == [[1.0, 2.0], [0.0, 0.0], [5.0, 8.0]]
    assert only_valid(TABLE[:, 0], VALID).tolist() == [1.0, 0.0, 5.0]
    assert only_valid(TABLE, None) is TABLE


def test_means_are_over_what_is_left() -> None:
    assert mean_over_valid(TABLE, VALID).tolist() == [3.0, 5.0]
    assert mean_over_valid(TABLE[::2], None).tolist() == [3.0, 5.0]
    assert mean_over_valid(TABLE, torch.zeros(3, dtype=torch.bool)).tolist() == [0.0, 0.0]
    assert mean_over_valid(TABLE[:0], None).tolist() == [0.0, 0.0]


def test_rows_are_counted() -> None:
    assert (int(n_valid(TABLE, VALID)), int(n_valid(TABLE, None))) == (2, 3)
