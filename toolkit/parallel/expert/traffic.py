"""Bytes that expert parallelism sends, from the routing alone."""

from __future__ import annotations

from dataclasses import dataclass

COUNT_BYTES = 4
"""Of the number of rows for one expert, an int32."""


@dataclass(frozen=True)
class ExchangedBytes:
    """Bytes that one process sends to others; what it keeps for its own experts is not sent.

    Attributes:
        rows: of tokens, of experts' outputs, and of the gradients of both.
        gates: of gates and their gradients: they travel with the tokens, so that no expert's output is kept for them.
        counts: of the numbers of rows, which are exchanged first, in the forward pass only.
    """

    rows: int = 0
    gates: int = 0
    counts: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.rows + self.gates + self.counts


def exchanged_bytes(
    leaving: int,
    arriving: int,
    *,
    dim: int,
    itemsize: int,
    gate_itemsize: int,
    num_experts: int,
    ranks: int,
    backward: bool = True,
) -> ExchangedBytes:
    """What one process sends in one MoE layer's forward, and backward, pass.

    Dispatch sends a row of ``dim`` numbers for each leaving triple, combine one for each that arrived, and the backward
    pass the gradients of each the other way. Over all processes rows come to 4 * triples * dim * itemsize, where
    triples are those whose expert is on another process: tokens * top_k * (ranks - 1) / ranks where loads are balanced.

    Args:
        leaving: (token, expert) pairs of this process whose expert is on another one.
        arriving: pairs of other processes whose expert is on this one.
        dim: width of a token.
        itemsize: bytes of a token's number.
        gate_itemsize: bytes of a gate.
        num_experts: routed experts of the layer, over all processes.
        ranks: processes that share them.
        backward: whether there is a backward pass.
    """
    ways = leaving + arriving
    counts = (ranks - 1) * num_experts // ranks * COUNT_BYTES
    rows, gates = ways * dim * itemsize, leaving * gate_itemsize
    if not backward:
        return ExchangedBytes(rows, gates, counts)
    return ExchangedBytes(2 * rows, ways * gate_itemsize, counts)
