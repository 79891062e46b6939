"""Attention in blocks of queries that visit only the columns their pass reaches: the CPU path.

Memory is linear in the sequence. Every pattern and feature takes one way: a block of rows, of all heads that
see alike, is one batched product with the columns it visits, side by side.
"""

from toolkit.attention.blockwise.backward import backward
from toolkit.attention.blockwise.forward import forward

__all__ = ["backward", "forward"]
