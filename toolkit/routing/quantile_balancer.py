"""A bias that is solved for: what would have given every expert its share of the last batch."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.checks import require, require_choice, require_positive
from toolkit.routing.assignment import Assignment
from toolkit.routing.balancer import Balancer
from toolkit.routing.scores import SCORES


class QuantileBalancer(Balancer):
    """After each step, b_i = the top_k / num_experts quantile of what expert i lacked to be chosen, over the tokens.

    With s the scores and a_t the (top_k + 1)-th largest of s_t + b, expert i would have been chosen for token t by
    a bias above r_ti = a_t - s_ti; a bias at the top_k / num_experts quantile of r_i over the global batch gives it
    its share, the other experts staying as they are. Then the biases' mean is subtracted, which changes no choice.

    The quantile is read from a histogram, which adds up over micro-batches and processes: ``bins`` equal bins from
    min(b) - 1 to max(b) + 1, which hold every r of scores between 0 and 1, interpolated within the bin. Of scores
    that exceed 1 (``"sqrt_softplus"``, ``"logits"``) what lies outside counts at the edge: a bias moves at most to
    there in one step, and further in the next.

    It sees the scores alone: no noise, no group limit. It takes an auxiliary balance loss's place.

    Args:
        num_experts: how many experts there are.
        top_k: experts per token.
        score: the router's, by which it chooses; ``"logits"`` for ``TopKRouter(pre_softmax=False)``.
        ema: share of the old bias that stays; 0 forgets it.
        bins: of the histogram of each expert.

    Raises:
        ValueError: if a size is not positive, ``top_k`` not below ``num_experts``, ``score`` unknown, or ``ema`` not
            within [0, 1).

    Source: Moonshot AI 2026, Kimi K3 technical report, section 2.3.3, equations 13 and 14, and appendix D, after Su
    2026 (kexue.fm/archives/11619); the moving average is Megatron-LM's.
    """

    def __init__(
        self, num_experts: int, top_k: int, *, score: str = "softmax", ema: float = 0.0, bins: int = 1000
    ) -> None:
        require_positive(num_experts=num_experts, bins=bins)
        super().__init__(num_experts, (num_experts, bins))
        require(1 <= top_k < num_experts, "top_k", top_k, f"between 1 and num_experts - 1 = {num_experts - 1}")
        require_choice("score", score, (*SCORES, "logits"))
        require(0 <= ema < 1, "ema", ema, "0 or more and below 1")
        self.top_k, self.score, self.ema, self.bins = top_k, score, ema, bins

    def measure(self, assignment: Assignment) -> Tensor:
        """What a router chose -> int64 (num_experts, bins), tokens by what each expert lacked."""
        logits = assignment.logits
        scores = logits if self.score == "logits" else SCORES[self.score](logits).raw
        cutoff = (scores + self.bias).topk(self.top_k + 1, dim=-1).values[:, -1:]
        low, width = self._range()
        place = ((cutoff - scores - low) / width).long().clamp(0, self.bins - 1)
        cell = place + torch.arange(self.num_experts, device=place.device) * self.bins
        beyond = self.num_experts * self.bins
        if assignment.valid is not None:
            cell = torch.where(assignment.valid[:, None], cell, beyond)
        histogram = torch.zeros(beyond + 1, dtype=torch.int64, device=cell.device)
        histogram.scatter_add_(0, cell.flatten(), torch.ones_like(cell).flatten())
        return histogram[:-1].view(self.num_experts, self.bins)

    def solve(self, seen: Tensor) -> Tensor:
        """histograms int64 (num_experts, bins) -> the next bias (num_experts,)."""
        tokens = seen.sum(dim=1, keepdim=True)
        wanted = tokens * (self.top_k / self.num_experts)
        below = seen.cumsum(dim=1)
        place = (below < wanted).sum(dim=1, keepdim=True).clamp(max=self.bins - 1)
        within = seen.gather(1, place)
        reached = (wanted - (below.gather(1, place) - within)) / within.clamp(min=1)
        low, width = self._range()
        quantile = (low + (place + reached) * width).squeeze(1).to(self.bias.dtype)
        bias = self.ema * self.bias + (1 - self.ema) * quantile
        return torch.where(tokens.squeeze(1) > 0, bias - bias.mean(), self.bias)

    def _range(self) -> tuple[Tensor, Tensor]:
        """Where the first bin starts, and the width of each."""
        low, high = self.bias.min() - 1, self.bias.max() + 1
        return low, (high - low) / self.bins

    def extra_repr(self) -> str:
        """Settings, for ``print(model)``."""
        return f"num_experts={self.num_experts}, top_k={self.top_k}, score={self.score!r}, ema={self.ema:g}"
