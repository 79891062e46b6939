"""What a router decides: which tokens go to which experts, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from toolkit.checks import require


@dataclass(frozen=True)
class Assignment:
    """A list of n (token, expert, weight) triples over ``tokens`` tokens, grouped by token in order.

    Attributes:
        token: int64 (n,), ascending; a token may stand 0 to num_experts times.
        expert: int64 (n,).
        weight: (n,), the gate; carries the gradient to the router.
        logits: (tokens, num_experts), the router's raw output in fp32.
        probabilities: (tokens, num_experts), the scores of every expert, normalised over experts.
        losses: the router's auxiliary losses by name, each already times its coefficient.
        dropped: how many triples capacity removed (0: dropless).
    """

    token: Tensor
    expert: Tensor
    weight: Tensor
    logits: Tensor
    probabilities: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    dropped: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens were routed."""
        return self.logits.shape[0]

    @property
    def num_experts(self) -> int:
        """How many experts there are."""
        return self.logits.shape[1]

    @property
    def indices(self) -> Tensor:
        """Experts of each token, (tokens, top_k); a ValueError where tokens differ in how many they have."""
        return self._by_token(self.expert)

    @property
    def weights(self) -> Tensor:
        """Gates of each token, (tokens, top_k); a ValueError where tokens differ in how many they have."""
        return self._by_token(self.weight)

    def _by_token(self, values: Tensor) -> Tensor:
        counts = torch.bincount(self.token, minlength=self.tokens)
        fewest, most = (int(counts.min()), int(counts.max())) if self.tokens else (0, 0)
        require(
            fewest == most,
            "assignment",
            f"{fewest} to {most} experts a token",
            "the same number for every token to be (tokens, top_k); use token, expert and weight",
        )
        return values.view(self.tokens, most)
