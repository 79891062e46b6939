"""Tensor parallelism: the heads, hidden units and vocabulary of every layer shared by neighbouring processes."""

from toolkit.parallel.tensor.plan import tensor_parallel
from toolkit.parallel.tensor.row_order import RowOrder, row_orders

__all__ = ["RowOrder", "row_orders", "tensor_parallel"]
