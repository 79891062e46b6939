"""Losses that keep a router's experts in use and its logits small."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from toolkit.checks import require, require_choice


class LoadBalancingLoss(nn.Module):
    """coefficient * E * sum_i f_i P_i: 1 * coefficient at perfect balance, whatever top_k is.

    f_i is the share of (token, expert) assignments that expert i received (sum 1, no gradient), P_i
    its mean probability. Counts are taken before anything is dropped.

    Args:
        coefficient: weight of the loss; 0.01 in Switch Transformer and OLMoE.
        over: ``"global"`` all-reduces the counts over the processes of the default group, so that every
            rank balances the global batch (Qiu et al. 2025, arXiv 2501.11873); P stays local, since
            averaging the ranks' gradients averages it. ``"batch"`` counts this rank's tokens only.
            Without a process group they are the same.

    Raises:
        ValueError: if ``coefficient`` is negative or ``over`` unknown.

    Source: Fedus et al. 2021 (arXiv 2101.03961), equations 4 to 6, with f over all top_k choices.
    """

    name = "balance"

    def __init__(self, coefficient: float = 0.01, over: str = "global") -> None:
        super().__init__()
        require(coefficient >= 0, "coefficient", coefficient, "0 or more")
        require_choice("over", over, ("global", "batch"))
        self.coefficient, self.over = coefficient, over

    def forward(self, logits: Tensor, probabilities: Tensor, expert: Tensor) -> Tensor:
        """logits, probabilities (tokens, num_experts), expert (n,) int64 -> scalar, fp32."""
        num_experts = logits.shape[1]
        counts = torch.bincount(expert, minlength=num_experts).to(probabilities.dtype)
        if self.over == "global" and dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        share = counts / counts.sum().clamp(min=1)  # a process may have no token at all
        importance = probabilities.sum(dim=0) / max(len(probabilities), 1)
        return self.coefficient * num_experts * torch.dot(share, importance)


class RouterZLoss(nn.Module):
    """coefficient * mean_t logsumexp(logits_t)^2, which keeps router logits small.

    Args:
        coefficient: weight of the loss; 0.001 in ST-MoE and OLMoE.

    Raises:
        ValueError: if ``coefficient`` is negative.

    Source: Zoph et al. 2022, ST-MoE (arXiv 2202.08906), equation 5.
    """

    name = "z"

    def __init__(self, coefficient: float = 0.001) -> None:
        super().__init__()
        require(coefficient >= 0, "coefficient", coefficient, "0 or more")
        self.coefficient = coefficient

    def forward(self, logits: Tensor, probabilities: Tensor, expert: Tensor) -> Tensor:
        """logits (tokens, num_experts) -> scalar, fp32; the other arguments are not used."""
        return self.coefficient * torch.logsumexp(logits, dim=-1).square().sum() / max(len(logits), 1)
