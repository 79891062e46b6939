"""Positions in every shape they are given in, and each way in which they can be wrong."""

from __future__ import annotations

import pytest
import torch

from toolkit.layers.rotary.positions import per_row


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 1, 4)])
def test_positions_for_all_rows(shape: tuple[int, ...]) -> None:
    out = per_row(torch.arange(4).reshape(shape), batch=3, length=4, max_position=None)
    assert torch.equal(out, torch.arange(4)[None])


@pytest.mark.parametrize("shape", [(3, 4), (3, 1, 4)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_positions_for_each_row(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    out = per_row(torch.arange(12, dtype=dtype).reshape(shape), batch=3, length=4, max_position=11)
    assert torch.equal(out, torch.arange(12, dtype=dtype).reshape(3, 4))


@pytest.mark.parametrize("shape", [(0,), (1, 0), (3, 0), (3, 1, 0)])
def test_no_positions(shape: tuple[int, ...]) -> None:
    out = per_row(torch.zeros(shape, dtype=torch.int64), batch=3, length=0, max_position=5)
    assert out.shape == (3 if 3 in shape else 1, 0)


@pytest.mark.parametrize(
    ("positions", "named"),
    [
        ([0, 1, 2, 3], "positions="),
        (torch.zeros(4), r"positions.dtype=torch.float32"),
        (torch.zeros(4, dtype=torch.bfloat16), r"positions.dtype=torch.bfloat16"),
        (torch.zeros(4, dtype=torch.bool), r"positions.dtype=torch.bool"),
        (torch.zeros(4, dtype=torch.uint8), r"positions.dtype=torch.uint8"),
        (torch.arange(5), r"positions.shape=\(5,\)"),
        (torch.zeros(2, 4, dtype=torch.int64), r"positions.shape=\(2, 4\): it must be \(4,\), \(3, 4\)"),
        (torch.zeros(3, 2, 4, dtype=torch.int64), r"positions.shape=\(3, 2, 4\)"),
        (torch.zeros(4, 3, dtype=torch.int64), r"positions.shape=\(4, 3\)"),
        (torch.tensor(3), r"positions.shape=\(\)"),
        (torch.tensor([0, 1, -1, 2]), "positions=-1"),
        (torch.tensor([0, 1, 10, 2]), "positions=10: it must be at most max_position=9"),
    ],
)
def test_bad_positions_are_named(positions: torch.Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        per_row(positions, batch=3, length=4, max_position=9)


def test_values_elsewhere_than_on_the_cpu_are_not_waited_for() -> None:
    positions = torch.empty(4, dtype=torch.int64, device="meta")  # has no values to look at
    assert per_row(positions, batch=3, length=4, max_position=9).shape == (1, 4)
