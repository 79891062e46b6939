"""Fused rows in the order of the processes, and back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toolkit.layers import SelfAttention, SwiGLU
from toolkit.parallel.tensor import RowOrder, row_orders
from toolkit.parallel.tensor.row_order import ATTRIBUTE

CASES = [((4, 4), 2), ((12, 6, 6), 3), ((8,), 4), ((2, 2, 2, 2), 1)]


@pytest.mark.parametrize(("parts", "ranks"), CASES)
@pytest.mark.parametrize("dim", [0, 1])
def test_each_process_has_its_share_of_every_part(parts: tuple[int, ...], ranks: int, dim: int) -> None:
    order, rows = RowOrder(dim, parts, ranks), torch.randn(*((sum(parts), 3) if dim == 0 else (2, sum(parts), 3)))
    for rank, mine in enumerate(order.to_ranks(rows).chunk(ranks, dim)):
        expected = [part.chunk(ranks, dim)[rank] for part in rows.split(parts, dim)]
        assert torch.equal(mine, torch.cat(expected, dim))


@pytest.mark.parametrize(("parts", "ranks"), CASES)
def test_the_way_back_is_the_inverse(parts: tuple[int, ...], ranks: int) -> None:
    order, rows = RowOrder(0, parts, ranks), torch.randn(sum(parts), 3)
    assert torch.equal(order.to_model(order.to_ranks(rows)), rows)
    assert torch.equal(order.to_ranks(order.to_model(rows)), rows)


def test_a_process_s_rows_are_a_smaller_layer_s() -> None:
    """The gated halves match, and heads keep their keys: the processes' outputs add up to the layer's."""
    torch.manual_seed(0)
    whole, half = SwiGLU(8, 6).double(), SwiGLU(8, 3).double()
    x = torch.randn(5, 8, dtype=torch.float64)
    first = RowOrder(0, (6, 6), 2).to_ranks(whole.first.detach()).chunk(2)
    second = whole.down_proj.detach().chunk(2, dim=1)
    total = torch.zeros_like(x)
    for rows, columns in zip(first, second, strict=True):
        half.load_state_dict({"gate_up_proj": rows, "down_proj": columns})
        total += half(x).detach()
    torch.testing.assert_close(total, whole(x).detach())


def test_the_same_of_heads() -> None:
    torch.manual_seed(0)
    whole, half = (SelfAttention(8, heads, kv_heads, head_dim=4).double() for heads, kv_heads in ((4, 2), (2, 1)))
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    first = RowOrder(0, (16, 8, 8), 2).to_ranks(whole.qkv_proj.detach()).chunk(2)
    second = whole.o_proj.detach().chunk(2, dim=1)
    total = torch.zeros_like(x)
    for rows, columns in zip(first, second, strict=True):
        half.load_state_dict({"qkv_proj": rows, "o_proj": columns})
        total += half(x).detach()
    torch.testing.assert_close(total, whole(x).detach())


def test_orders_are_found_by_parameter() -> None:
    model, order = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)), RowOrder(0, (2, 2), 2)
    setattr(model[0], ATTRIBUTE, {"weight": order})
    assert row_orders(model) == {"0.weight": order}
    assert row_orders(model[0]) == {"weight": order}
