"""Group-limited routing: a token's experts may come from a few groups of experts only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor

from toolkit.checks import require, require_choice


@dataclass(frozen=True)
class GroupLimit:
    """Keeps the ``top_groups`` best of ``groups`` groups of consecutive experts, for each token by itself.

    A group is a device or a node, so that a token is sent to few of them.

    Args:
        groups: how many groups of num_experts / groups consecutive experts there are.
        top_groups: how many of them a token may use.
        score: how good a group is: ``"top2_sum"``, the sum of its two best scores (DeepSeek-V3), or ``"max"``, its
            best (DeepSeek-V2). The scores are those that top-k ranks, with the balancer's bias.

    Raises:
        ValueError: if ``top_groups`` is not between 1 and ``groups``, or ``score`` is unknown; from :meth:`check`,
            where an experts' router does not fit.

    Source: DeepSeek-AI 2024, V2 (arXiv 2405.04434), section 2.2.2, device-limited routing; V3 (arXiv 2412.19437),
    section 2.1.2, node-limited routing.
    """

    groups: int
    top_groups: int
    score: str = "top2_sum"

    def __post_init__(self) -> None:
        require(self.groups >= 1, "groups", self.groups, "1 or more")
        require(1 <= self.top_groups <= self.groups, "top_groups", self.top_groups, f"1 to groups={self.groups}")
        require_choice("group_score", self.score, ("top2_sum", "max"))

    def check(self, num_experts: int, top_k: int) -> None:
        """Raise a ValueError unless experts divide into the groups and ``top_k`` fit in those that stay."""
        require(num_experts % self.groups == 0, "groups", self.groups, f"a divisor of num_experts={num_experts}")
        size = num_experts // self.groups
        reach = self.top_groups * size
        require(top_k <= reach, "top_groups", self.top_groups, f"enough that top_k={top_k} fit, {size} experts a group")
        fits = size >= 2 or self.score != "top2_sum"
        require(fits, "groups", self.groups, "such that a group has 2 experts or more, or group_score='max'")

    def __call__(self, ranking: Tensor) -> Tensor:
        """ranking (tokens, num_experts) -> the same with -inf outside the groups that stay.

        Not 0: a score with a negative bias would lose to an expert that is masked.
        """
        by_group = rearrange(ranking, "t (g e) -> t g e", g=self.groups)
        best = by_group.amax(dim=-1) if self.score == "max" else by_group.topk(2, dim=-1).values.sum(dim=-1)
        stays = torch.zeros_like(best, dtype=torch.bool).scatter(1, best.topk(self.top_groups, dim=-1).indices, True)
        return ranking.masked_fill(~repeat(stays, "t g -> t (g e)", e=by_group.shape[-1]), -torch.inf)
