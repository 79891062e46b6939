"""Capacity: an expert takes so many tokens and no more."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from toolkit.checks import require, require_choice, require_positive
from toolkit.routing.assignment import Assignment
from toolkit.routing.dispatch import token_starts
from toolkit.routing.ranking import rank_within, share
from toolkit.routing.sequences import in_order


@dataclass(frozen=True)
class Capacity:
    """An adjustment that drops what exceeds C = max(min_capacity, ceil(factor * choices / num_experts)) of an expert.

    ``choices`` are those of tokens that are not padding, before anything is dropped; experts without computation take
    all that comes. What is dropped becomes expert -1 with weight 0: it adds nothing, the residual carries the token,
    and ``assignment.dropped`` counts it. ``chosen``, and with it every loss and statistic, stays what the router chose.

    Causality: C grows with the number of tokens, and better or earlier-queued choices of later tokens push out those of
    earlier ones, so dropping reads the future under either policy. Evaluation drops nothing unless
    ``evaluation_factor`` says so (``causal`` is then ``"never"``).

    Args:
        factor: how much room an expert has over its fair share, above 0.
        policy: ``"probability"`` keeps the highest gates of each expert (batch prioritized routing, Riquelme et al.
            2021, arXiv 2106.05974, section 4). ``"position"`` keeps the first to come, in the order of GShard: all
            first choices in token order, then all second choices, and so on. Ties go to the earlier token.
        renormalize: ``"before"`` leaves the gates as the router made them, so a token that loses an expert gets a
            smaller output; ``"after"`` multiplies a token's remaining gates so that their sum is what it was: gates
            that summed to 1 do again (DeepSpeed), and the gate of a top-1 router still has its gradient.
        min_capacity: C is at least this.
        per: whose choices share a capacity: those of the ``"batch"``, or of each ``"sequence"``, which makes the
            outcome the same however sequences are spread over processes.
        evaluation_factor: ``factor`` in evaluation; None drops nothing there.

    Raises:
        ValueError: if a setting is out of its range or unknown.

    Source: Lepikhin et al. 2020, GShard (arXiv 2006.16668), section 2.2 and algorithm 1; Fedus et al. 2021
    (arXiv 2101.03961), equation 3.
    """

    factor: float
    policy: str = "probability"
    renormalize: str = "before"
    min_capacity: int = 1
    per: str = "batch"
    evaluation_factor: float | None = None

    certainty = "bound"

    def __post_init__(self) -> None:
        require_positive(factor=self.factor, min_capacity=self.min_capacity)
        require_choice("policy", self.policy, ("probability", "position"))
        require_choice("renormalize", self.renormalize, ("before", "after"))
        require_choice("per", self.per, ("batch", "sequence"))
        fits = self.evaluation_factor is None or self.evaluation_factor > 0
        require(fits, "evaluation_factor", self.evaluation_factor, "positive, or None")

    @property
    def causal(self) -> str:
        """``"evaluation"``, or ``"never"`` where evaluation drops too."""
        return "evaluation" if self.evaluation_factor is None else "never"

    def __call__(self, assignment: Assignment, training: bool = True) -> Assignment:
        """The same triples, some of them without an expert."""
        factor = self.factor if training else self.evaluation_factor
        if factor is None:
            return assignment
        kept = self._place(assignment) < self._room(assignment, factor)
        kept |= assignment.expert >= assignment.computing_experts
        kept &= assignment.expert >= 0
        weight = torch.where(kept, assignment.weight, 0.0)
        if self.renormalize == "after":
            weight = weight * _make_up(assignment, weight)
        expert = torch.where(kept, assignment.expert, -1)
        return replace(assignment, expert=expert, weight=weight, chosen=assignment.choice)

    def limit(self, choices: int, num_experts: int, training: bool = True) -> int | None:
        """C where a sequence has so many ``choices``; of a batch, its share of C at most. None: nothing is dropped."""
        factor = self.factor if training else self.evaluation_factor
        return None if factor is None else max(self.min_capacity, share(choices, factor, num_experts))

    def _place(self, assignment: Assignment) -> Tensor:
        """int64 (n,): how many choices stand before each one in its expert's queue."""
        queue = assignment.expert + assignment.num_experts * self._group(assignment)
        queue = torch.where(assignment.expert < 0, -1, queue)
        if self.policy == "probability":
            return rank_within(queue, assignment.weight.detach())
        order = torch.arange(len(queue), device=queue.device)
        rank = order - token_starts(assignment.token, assignment.tokens).index_select(0, assignment.token)
        return rank_within(queue, -rank)

    def _room(self, assignment: Assignment, factor: float) -> Tensor:
        """int64 (n,): the capacity of the expert that each choice is for."""
        group, choices = self._group(assignment), (assignment.choice >= 0).long()
        counts = torch.zeros(max(assignment.tokens, 1), dtype=torch.int64, device=group.device)
        capacity = share(counts.scatter_add(0, group, choices), factor, assignment.num_experts)
        return capacity.clamp(min=self.min_capacity).index_select(0, group)

    def _group(self, assignment: Assignment) -> Tensor:
        """int64 (n,): 0, or the sequence each choice is of."""
        if self.per == "batch" or assignment.sequence_ids is None:
            return torch.zeros_like(assignment.token)
        return in_order(assignment.sequence_ids).index_select(0, assignment.token)


def _make_up(assignment: Assignment, kept: Tensor) -> Tensor:
    """(n,): the sum of each token's gates over the sum of those ``kept`` (n,); 1 where none is."""
    zeros = kept.new_zeros(assignment.tokens)
    before = zeros.index_add(0, assignment.token, assignment.weight)
    after = zeros.index_add(0, assignment.token, kept)
    some = after > 0
    return torch.where(some, before / torch.where(some, after, 1.0), 1.0).index_select(0, assignment.token)
