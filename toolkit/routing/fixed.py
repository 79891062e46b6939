"""Routers that look at no token: baselines and benchmarks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from toolkit.checks import require
from toolkit.routing.assignment import Assignment
from toolkit.routing.router import Router, table


class FixedRouter(Router):
    """Base of routers whose choice no token's content moves: logits of 0, and nothing to learn unless they add it.

    Args:
        num_experts: how many experts there are.
        top_k: experts per token, each with the gate 1 / top_k.
        losses: see :class:`Router`; for a subclass that learns.

    Raises:
        ValueError: if a size is not positive or ``top_k`` exceeds ``num_experts``.
    """

    certainty = "exact"

    def __init__(self, num_experts: int, top_k: int, losses: Iterable[nn.Module] = ()) -> None:
        super().__init__(num_experts, losses)
        require(1 <= top_k <= num_experts, "top_k", top_k, f"between 1 and num_experts={num_experts}")
        self.top_k = top_k

    def score(self, x: Tensor) -> Tensor:
        """x (tokens, dim) -> zeros (tokens, num_experts), fp32 (fp64 for fp64 tokens)."""
        return x.new_zeros(len(x), self.num_experts, dtype=torch.promote_types(x.dtype, torch.float32))

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return f"num_experts={self.num_experts}, top_k={self.top_k}"


class RandomRouter(FixedRouter):
    """Each token goes to ``top_k`` experts drawn without replacement from torch's generator, in evaluation too.

    A baseline that routing has to beat. The draw knows no token, so it is causal.
    """

    def route(
        self, logits: Tensor, *, token_ids: Tensor | None, sequence_ids: Tensor | None, valid: Tensor | None
    ) -> Assignment:
        """logits (tokens, num_experts) -> tokens * top_k triples; probabilities are those of the draw."""
        experts = self.replayed(torch.rand_like(logits).topk(self.top_k, dim=-1).indices)
        probabilities = torch.full_like(logits, 1 / self.num_experts)
        return table(logits, probabilities, experts, equal_gates(logits, self.top_k))


class UniformRouter(FixedRouter):
    """BENCHMARKS ONLY: round robin, token t to experts (t * top_k + j) % num_experts, so that loads are equal.

    Speed measured with it is that of perfectly balanced experts. A model does not learn to route with it. Padding
    is left out of the count of tokens, which makes no token depend on a later one: causal.
    """

    def route(
        self, logits: Tensor, *, token_ids: Tensor | None, sequence_ids: Tensor | None, valid: Tensor | None
    ) -> Assignment:
        """logits (tokens, num_experts) -> tokens * top_k triples."""
        real = torch.ones_like(logits[:, 0], dtype=torch.bool) if valid is None else valid
        turn = (real.cumsum(0) - 1).clamp(min=0) * self.top_k
        experts = self.replayed((turn[:, None] + torch.arange(self.top_k, device=logits.device)) % self.num_experts)
        return table(logits, certain(logits, experts), experts, equal_gates(logits, self.top_k))

    def extra_repr(self) -> str:
        """Sizes, and what it is for."""
        return f"{super().extra_repr()}, benchmarks only"


def equal_gates(logits: Tensor, top_k: int) -> Tensor:
    """(tokens, top_k) of 1 / top_k, for logits (tokens, num_experts)."""
    return logits.new_full((len(logits), top_k), 1 / top_k)


def certain(logits: Tensor, experts: Tensor) -> Tensor:
    """(tokens, num_experts): 1 / top_k for each of experts int64 (tokens, top_k), 0 for others."""
    return torch.zeros_like(logits).scatter(1, experts, 1 / experts.shape[1])
