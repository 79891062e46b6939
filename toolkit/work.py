"""The unit of compute accounting: what one operator multiplies and adds over one sequence.

Every operator states its own work beside its code; ``toolkit.compute`` only sums. Only matrix
products are work: norms, softmax, top-k and sorting are taken as free, as in Chowdhery et al. 2022
(arXiv 2204.02311, appendix B); Hoffmann et al. 2022 (arXiv 2203.15556, appendix F) charge for the softmax.
"""

from __future__ import annotations

from dataclasses import dataclass

BACKWARD = 2.0
"""A product's backward pass is two products of the same size: one for each operand's gradient."""

CERTAINTIES = ("exact", "bound", "balanced")
"""From the most certain on: what is always run; at most that; that where loads are balanced, elsewhere more or less."""


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one operator's forward pass over one sequence.

    Attributes:
        kind: what the work is for: ``"attention"`` (projections), ``"scores"`` (query-key and
            weight-value products), ``"selection"`` (choosing keys by content), ``"feed_forward"``,
            ``"experts"``, ``"router"``, ``"head"``.
        needed: what the definition asks for: visible (query, key) pairs, routed tokens.
        square: the same had no pair been masked.
        computed: what the backend runs: whole tiles of attention; rows that only pad an expert are not in it.
        computed_backward: multiply-adds the backend runs backward for each one it ran forward,
            recomputation included.
        backward: what the other conventions charge for that: ``BACKWARD`` whatever the backend does, 0 for
            products that get no gradient.
        phase: when it is done: in ``"both"``, or in ``"training"`` or ``"evaluation"`` alone.
        certainty: what a training forward's count of it depends on: ``"exact"``: on shapes alone. ``"bound"``: on
            data, and it is at most this. ``"balanced"``: on data, and it is this where loads are balanced, or as the
            router's balancer aims at; more or less elsewhere.
        scores: query-key scores, one a head and pair, had no pair been masked: what a softmax is taken of, for a
            convention that charges for it.
    """

    kind: str
    needed: int
    square: int
    computed: int
    computed_backward: float = BACKWARD
    backward: float = BACKWARD
    phase: str = "both"
    certainty: str = "exact"
    scores: int = 0

    @classmethod
    def dense(cls, kind: str, multiply_adds: int) -> Work:
        """Work of a plain matrix product, which is the same in every convention."""
        return cls(kind, multiply_adds, multiply_adds, multiply_adds)
