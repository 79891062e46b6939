"""The two losses of the first sparsely-gated layer: even gates, and even chances of being chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.checks import require
from toolkit.routing.assignment import Assignment
from toolkit.routing.auxiliary_loss import AuxiliaryLoss
from toolkit.routing.valid import only_valid

EPSILON = 1e-10
"""Added to the squared mean, so that no token at all is no division by zero."""


def squared_variation(values: Tensor) -> Tensor:
    """values (num_experts,) -> variance / (mean^2 + 1e-10), a scalar: the square of the coefficient of variation.

    The variance is the population's (over num_experts), not ``torch.var``'s (over num_experts - 1).
    """
    return values.var(correction=0) / (values.mean().square() + EPSILON)


class ImportanceLoss(AuxiliaryLoss):
    """coefficient * CV(importance)^2, an expert's importance being the sum of its gates over the batch; 0 at balance.

    Args:
        coefficient: weight of the loss; 0.1 in the paper.

    Source: Shazeer et al. 2017 (arXiv 1701.06538), equations 6 and 7.
    """

    name = "importance"

    def __init__(self, coefficient: float = 0.1) -> None:
        super().__init__(coefficient)

    def value(self, assignment: Assignment) -> Tensor:
        """What a router chose -> the squared variation of its experts' summed gates, a scalar."""
        keys = torch.where(assignment.choice < 0, assignment.num_experts, assignment.choice)
        gates = assignment.weight.new_zeros(assignment.num_experts + 1).scatter_add(0, keys, assignment.weight)
        return squared_variation(gates[:-1])


class LoadLoss(AuxiliaryLoss):
    """coefficient * CV(load)^2, where an expert's load is how many tokens would choose it were its noise drawn again.

    A smooth stand-in for the counts: load_i = sum_t Phi((logits_ti - threshold_ti) / std_ti), where the threshold
    is the top_k-th largest noisy logit of the token's other experts. Gradients flow through all three.

    Args:
        coefficient: weight of the loss; 0.1 in the paper.

    Raises:
        ValueError: when called, if the router adds no noise, or its tokens differ in how many experts they have.

    Source: Shazeer et al. 2017 (arXiv 1701.06538), appendix A, equations 8 to 11.
    """

    name = "load"

    def __init__(self, coefficient: float = 0.1) -> None:
        super().__init__(coefficient)

    def value(self, assignment: Assignment) -> Tensor:
        """What a noisy router chose -> the squared variation of its experts' smooth load, a scalar."""
        noisy, std = assignment.noisy_logits, assignment.noise_std
        if noisy is None or std is None:
            raise ValueError("losses: LoadLoss is the load under the router's noise: the router must have some")
        n, (tokens, num_experts) = len(assignment.choice), noisy.shape
        require(n % max(tokens, 1) == 0, "losses", "LoadLoss", f"left out: {n} choices of {tokens} tokens are no top_k")
        top_k = n // max(tokens, 1)
        if top_k in (0, num_experts):
            return noisy.new_zeros(())  # every expert's load is the same: none of the tokens, or all
        largest = noisy.topk(top_k + 1, dim=-1).values
        chosen, next_best = largest[:, top_k - 1 : top_k], largest[:, top_k:]
        threshold = torch.where(noisy > next_best, next_best, chosen)
        chance = torch.special.ndtr((assignment.logits - threshold) / std)
        return squared_variation(only_valid(chance, assignment.valid).sum(dim=0))
