"""Fused matrices under tensor parallelism: whose rows stand in the order of the processes that hold them.

``qkv_proj`` stacks the rows of queries, keys and values, ``gate_up_proj`` those of gate and up. Cut into even pieces,
the first process would get queries alone, or gates alone. So the sharded tensor has its rows in another order: the
first process's queries, keys and values, then the second's. :class:`RowOrder` says which, and leads back to the layout
that the model, its checkpoints and Hugging Face's have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

ATTRIBUTE = "_tensor_row_orders"
"""Where a module keeps the orders of its own parameters, by name."""


@dataclass(frozen=True)
class RowOrder:
    """The order of a fused matrix's rows when every process has its share of each part.

    Attributes:
        dim: the axis of the fused rows.
        parts: rows of each part, (queries, keys, values) or (gate, up); multiples of ``ranks``.
        ranks: processes.

    >>> RowOrder(0, (4, 2, 2), 2).to_ranks(torch.arange(8))
    tensor([0, 1, 4, 6, 2, 3, 5, 7])
    """

    dim: int
    parts: tuple[int, ...]
    ranks: int

    @property
    def order(self) -> Tensor:
        """int64 (rows,): which row of the model's layout stands at each place of the processes'."""
        parts = torch.arange(sum(self.parts)).split(list(self.parts))
        return torch.cat([part.chunk(self.ranks)[rank] for rank in range(self.ranks) for part in parts])

    def to_ranks(self, tensor: Tensor) -> Tensor:
        """The model's layout -> the processes'."""
        return tensor.index_select(self.dim, self.order.to(tensor.device))

    def to_model(self, tensor: Tensor) -> Tensor:
        """The processes' layout -> the model's."""
        return tensor.index_select(self.dim, self.order.argsort().to(tensor.device))


def row_orders(model: nn.Module) -> dict[str, RowOrder]:
    """By the name of every parameter of ``model`` whose rows are not in the model's own order."""
    return {
        f"{path}.{name}" if path else name: order
        for path, module in model.named_modules()
        for name, order in getattr(module, ATTRIBUTE, {}).items()
    }
