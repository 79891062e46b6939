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
    that score it highest among those that did not choose it. So a load changes by at most half a tile, and by less than
    one where there are not enough tokens left to round up. Halves round up. Mean loads should be 2 * ``multiple`` or
    more: an expert with less than half a tile loses all. Experts without computation are left alone, one that a
    capacity has cut only rounds down, and a token without any expert is not added.

    The gate of an added token is on the scale of those it has: with g its gates and p its probabilities of the experts
    it has, an expert e more has the gate p_e * sum(g) / sum(p), or the least of g where that is less. For a token's
    likeliest experts, normalised or not and times a routed scale, that is what its router would have made of e's score
    under the same denominator; where the choice was not by probability (a balancer's bias, a hash, a plan), the least
    of g keeps an expert that nobody chose from weighing more than those chosen. The gates it has stay as they are.

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
    certainty = "balanced"

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

    def added(self, num_experts: int, tokens: int) -> int:
        """Triples that a batch has more for it, -1 where not used."""
        return num_experts * min(self.multiple // 2, tokens)

    def _change(self, assignment: Assignment) -> Tensor:
        """int64 (num_experts,): how many tokens each expert gains, or loses where negative."""
        loads = count(assignment.expert, assignment.num_experts)
        computing = torch.arange(assignment.num_experts, device=loads.device) < assignment.computing_experts
        nearest = (loads + self.multiple // 2) // self.multiple * self.multiple
        down = loads // self.multiple * self.multiple
        enough = nearest <= _has_expert(assignment).sum()
        cut = assignment.counts() > loads
        change = torch.where(enough & ~cut, nearest, down) - loads
        return torch.where(computing, change, 0)

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
        taken = taken.view(tokens, experts) | ~_has_expert(assignment)[:, None]
        scores = torch.where(taken, -torch.inf, assignment.probabilities.detach())
        token = torch.topk(scores, min(self.multiple // 2, tokens), dim=0).indices
        used = torch.arange(len(token), device=token.device)[:, None] < change
        expert = torch.where(used, torch.arange(experts, device=token.device), -1)
        ratio, least = _gates(assignment)
        gate = torch.minimum(assignment.probabilities.gather(0, token) * ratio[token], least[token])
        return token.flatten(), expert.flatten(), torch.where(used, gate, 0.0).flatten()


def _has_expert(assignment: Assignment) -> Tensor:
    """bool (tokens,)."""
    has = torch.zeros(assignment.tokens, dtype=torch.int64, device=assignment.token.device)
    return has.index_add(0, assignment.token, (assignment.expert >= 0).long()) > 0


def _gates(assignment: Assignment) -> tuple[Tensor, Tensor]:
    """Of each token (tokens,): its gates' sum over its probabilities' of the same experts, and the least gate.

    0 and 0 where it has no expert; a ratio of 0 too where those probabilities are all 0.
    """
    token, some = assignment.token, assignment.expert >= 0
    of_choice = assignment.probabilities[token, assignment.expert.clamp(min=0)]
    zeros = assignment.probabilities.new_zeros(assignment.tokens)
    gates = zeros.index_add(0, token, torch.where(some, assignment.weight, 0.0))
    probabilities = zeros.index_add(0, token, torch.where(some, of_choice, 0.0))
    known = probabilities > 0
    ratio = torch.where(known, gates / torch.where(known, probabilities, 1.0), 0.0)
    weight = torch.where(some, assignment.weight, torch.inf)
    least = torch.full_like(zeros, torch.inf).scatter_reduce(0, token, weight, "amin")
    return ratio, torch.where(least.isinf(), 0.0, least)
