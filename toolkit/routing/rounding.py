"""Token rounding: experts' loads become multiples of the tile that a grouped product computes anyway."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from toolkit.checks import require_positive
from toolkit.routing.assignment import Assignment, count
from toolkit.routing.ranking import rank_within


@dataclass(frozen=True)
class TokenRounding:
    """An adjustment that rounds each expert's number of tokens to the nearest multiple of ``multiple``, in training.

    An expert that rounds down drops its tokens with the lowest gates; one that rounds up also takes the tokens
    that score it highest among those that did not choose it, with their probability as the gate. So a
    load changes by at most half a tile, and by less than one where there are not enough tokens left to round up.
    Halves round up. Mean loads should be 2 * ``multiple`` or more: an expert with less than half a tile loses all.

    What was dropped is counted in ``assignment.dropped``; ``chosen``, and with it every loss and statistic, stays what
    the router chose, of which added triples are not. Padding is never added.

    It compares tokens across the whole batch, so training reads the future; evaluation is left as it is
    (``causal == "evaluation"``).

    Cost: num_experts * (multiple // 2) further triples, -1 where not used, and a sort.

    Args:
        multiple: rows of the grouped product's tile.

    Raises:
        ValueError: if ``multiple`` is not positive.

    Source: Guo et al. 2025, SonicMoE (arXiv 2512.14080), token rounding to the nearest multiple.
    """

    multiple: int = 128

    causal = "evaluation"

    def __post_init__(self) -> None:
        require_positive(multiple=self.multiple)

    def __call__(self, assignment: Assignment, training: bool = True) -> Assignment:
        """The triples with some dropped and some added, token still ascending; the same in evaluation."""
        if not training:
            return assignment
        change = self._change(assignment)
        kept = self._kept(assignment, change)
        token, expert, gate = self._added(assignment, change)
        order = torch.argsort(torch.cat([assignment.token, token]), stable=True)

        def merged(old: Tensor, new: Tensor) -> Tensor:
            return torch.cat([old, new.to(old.dtype)]).index_select(0, order)

        return replace(
            assignment,
            token=merged(assignment.token, token),
            expert=merged(torch.where(kept, assignment.expert, -1), expert),
            weight=merged(torch.where(kept, assignment.weight, 0.0), gate),
            chosen=merged(assignment.choice, torch.full_like(expert, -1)),
        )

    def _change(self, assignment: Assignment) -> Tensor:
        """int64 (num_experts,): how many tokens each expert gains, or loses where negative."""
        loads = count(assignment.expert, assignment.num_experts)
        nearest = (loads + self.multiple // 2) // self.multiple * self.multiple
        down = loads // self.multiple * self.multiple
        real = assignment.tokens if assignment.valid is None else assignment.valid.sum()
        return torch.where(nearest <= real, nearest, down) - loads

    @staticmethod
    def _kept(assignment: Assignment, change: Tensor) -> Tensor:
        """bool (n,): the choices that stay."""
        loads = count(assignment.expert, assignment.num_experts)
        rank = rank_within(assignment.expert, assignment.weight.detach())
        room = (loads + change.clamp(max=0)).index_select(0, assignment.expert.clamp(min=0))
        return (assignment.expert >= 0) & (rank < room)

    def _added(self, assignment: Assignment, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token, expert and gate of num_experts * min(multiple // 2, tokens) further triples, expert -1 if not used."""
        tokens, experts = assignment.tokens, assignment.num_experts
        pair = assignment.token * experts + assignment.expert
        pair = torch.where(assignment.expert < 0, tokens * experts, pair)
        taken = torch.zeros(tokens * experts + 1, dtype=torch.bool, device=pair.device).scatter(0, pair, True)[:-1]
        taken = taken.view(tokens, experts)
        if assignment.valid is not None:
            taken = taken | ~assignment.valid[:, None]
        scores = torch.where(taken, -torch.inf, assignment.probabilities.detach())
        token = torch.topk(scores, min(self.multiple // 2, tokens), dim=0).indices
        used = torch.arange(len(token), device=token.device)[:, None] < change
        expert = torch.where(used, torch.arange(experts, device=token.device), -1)
        gate = torch.where(used, assignment.probabilities.gather(0, token), 0.0)
        return token.flatten(), expert.flatten(), gate.flatten()
