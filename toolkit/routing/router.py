"""The top-k router: each token goes to the experts it scores highest."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from toolkit.checks import require, require_positive
from toolkit.routing.assignment import Assignment
from toolkit.routing.balance import LoadBalancingLoss, RouterZLoss
from toolkit.work import Work


class TopKRouter(nn.Module):
    """Softmax over all experts, then each token's ``top_k`` highest.

    Scores are computed in fp32 (fp64 for fp64 weights) whatever the autocast: Switch Transformer's
    "selective precision". Causal: a token's experts depend on that token alone.

    Args:
        dim: width of a token.
        num_experts: how many experts there are.
        top_k: experts per token.
        normalize: divide the chosen gates by their sum (Mixtral; GShard). None means ``top_k > 1``: a
            normalised top-1 gate is always 1 and gives the router no gradient.
        losses: auxiliary losses, called on every training forward with the logits, the probabilities
            and the chosen experts; by default load balancing at 0.01 and the z-loss at 0.001.

    Raises:
        ValueError: if a size is not positive or ``top_k`` exceeds ``num_experts``.

    Source: Shazeer et al. 2017 (arXiv 1701.06538), section 2.1 without noise; Jiang et al. 2024,
    Mixtral (arXiv 2401.04088), section 2.1.
    """

    kind = "router"

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int,
        normalize: bool | None = None,
        losses: Iterable[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        require_positive(dim=dim, num_experts=num_experts, top_k=top_k)
        require(top_k <= num_experts, "top_k", top_k, f"between 1 and num_experts={num_experts}")
        if normalize and top_k == 1:
            warnings.warn("normalize=True with top_k=1 makes every gate 1: the router gets no gradient", stacklevel=2)
        self.num_experts, self.top_k = num_experts, top_k
        self.normalize = top_k > 1 if normalize is None else normalize
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        self.losses = nn.ModuleList([LoadBalancingLoss(), RouterZLoss()] if losses is None else losses)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with standard deviation dim ** -0.5: logits of unit variance for normalised tokens."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)

    def forward(self, x: Tensor) -> Assignment:
        """x (tokens, dim) -> Assignment of tokens * top_k triples."""
        compute = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = nn.functional.linear(x.to(compute), self.weight.to(compute))
            probabilities = torch.softmax(logits, dim=-1)
            gates, experts = torch.topk(probabilities, self.top_k, dim=-1)
            if self.normalize:
                gates = gates / gates.sum(dim=-1, keepdim=True)
            expert = experts.flatten()
            active = self.losses if self.training else ()
            losses = {str(loss.name): loss(logits, probabilities, expert) for loss in active}
        token = torch.arange(x.shape[0], device=x.device).repeat_interleave(self.top_k)
        return Assignment(token, expert, gates.flatten(), logits, probabilities, losses)

    def work(self, seq_len: int) -> list[Work]:
        """One product: every token with every expert's row."""
        return [Work.dense("router", seq_len * self.weight.numel())]

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        experts, dim = self.weight.shape
        return f"dim={dim}, num_experts={experts}, top_k={self.top_k}, normalize={self.normalize}"
