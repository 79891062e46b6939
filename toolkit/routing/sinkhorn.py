"""Routing by optimal transport: the experts' shares are made equal before tokens choose."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from toolkit.checks import require, require_positive
from toolkit.routing.assignment import Assignment
from toolkit.routing.balance import RouterZLoss
from toolkit.routing.router import GatedRouter, table


class SinkhornRouter(GatedRouter):
    """In training each token goes to the ``top_k`` largest entries of its row of the balanced plan of the batch.

    The plan is exp(logits) with rows and columns scaled until every token has the same mass and every
    expert too. The choice carries no gradient; the gate is sigmoid(logit) for ``top_k == 1`` and softmax(logits) over
    all experts, gathered and not normalised, for more. Evaluation chooses by the logits alone.

    The plan is over all tokens of the call, so training reads the future and other sequences, evaluation does not
    (``causal == "evaluation"``): a mismatch that is inherent, as is that N processes balance N batches.
    Padding has no mass. Loads come out nearly equal, not exactly.

    Args:
        dim: width of a token.
        num_experts: how many experts there are.
        top_k: experts per token.
        iterations: Sinkhorn iterations. Their number is fixed because stopping at a tolerance would wait for the
            device. Every expert is within 1e-4 of its mass after 5 for logits of standard deviation 1, 20 for 3,
            80 for 10.
        losses: only the z-loss; the plan balances already.

    Raises:
        ValueError: if a size is out of its range, or a loss is another than ``RouterZLoss``.

    Source: Clark et al. 2022 (arXiv 2202.01169), S-BASE, which relaxes the linear assignment of Lewis et al. 2021, BASE
    (arXiv 2103.16716); Sinkhorn iterations: Cuturi 2013 (arXiv 1306.0895), algorithm 1.
    """

    causal = "evaluation"
    certainty = "exact"

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 1,
        *,
        iterations: int = 20,
        losses: Iterable[nn.Module] = (),
    ) -> None:
        losses = list(losses)
        for loss in losses:
            right = "RouterZLoss or nothing: Sinkhorn balances already, and a balance loss would fight it"
            require(isinstance(loss, RouterZLoss), "losses", losses, right)
        super().__init__(dim, num_experts, losses=losses)
        require(1 <= top_k <= num_experts, "top_k", top_k, f"between 1 and num_experts={num_experts}")
        require_positive(iterations=iterations)
        self.top_k, self.iterations = top_k, iterations

    def route(
        self, logits: Tensor, *, token_ids: Tensor | None, sequence_ids: Tensor | None, valid: Tensor | None
    ) -> Assignment:
        """logits (tokens, num_experts) -> tokens * top_k triples."""
        chosen_by = logits.detach()
        if self.training:
            chosen_by = chosen_by + balancing_bias(chosen_by, valid, self.iterations)
        experts = self.replayed(torch.topk(chosen_by, self.top_k, dim=-1).indices)
        probabilities = torch.softmax(logits, dim=-1)
        gates = torch.sigmoid(logits) if self.top_k == 1 else probabilities
        return table(logits, probabilities, experts, gates.gather(1, experts))

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        experts, dim = self.weight.shape
        return f"dim={dim}, num_experts={experts}, top_k={self.top_k}, iterations={self.iterations}"


@torch.no_grad()
def balancing_bias(logits: Tensor, valid: Tensor | None = None, iterations: int = 20) -> Tensor:
    """(num_experts,): added to logits (tokens, num_experts), it makes their softmaxes spend each expert equally.

    The plan's rows and columns scale it by exp(u) and exp(v); within a token's row u changes no order, so v is all
    that a choice needs. In logarithms, so that no logit is too large. Its mean is 0.

    Shapes: valid bool (tokens,) or None.
    """
    bias = logits.new_zeros(logits.shape[1])
    for _ in range(iterations):
        log_plan = torch.log_softmax(logits + bias, dim=-1)
        if valid is not None:
            log_plan = log_plan.masked_fill(~valid[:, None], -torch.inf)
        bias = bias - torch.logsumexp(log_plan, dim=0)
        # Without any token every sum is -inf; a mean of 0 also keeps the bias from drifting off.
        bias = torch.nan_to_num(bias - bias.mean())
    return bias
