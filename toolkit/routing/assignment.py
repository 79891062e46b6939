"""What a router decides: which tokens go to which experts, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from toolkit.checks import require


@dataclass(frozen=True)
class Assignment:
    """A list of n (token, expert, weight) triples over ``tokens`` tokens, grouped by token in order.

    An expert of -1 is none: a token that is padding, a choice that capacity dropped. Nobody computes it.

    Attributes:
        token: int64 (n,), ascending; a token may stand 0 to num_experts times.
        expert: int64 (n,), 0 to num_experts - 1, or -1.
        weight: (n,), the gate; carries the gradient to the router; 0 where there is no expert.
        logits: (tokens, num_experts), the router's raw output in fp32.
        probabilities: (tokens, num_experts), the scores of every expert, normalised over experts.
        losses: the router's auxiliary losses by name, each already times its coefficient.
        chosen: int64 (n,), what the router chose before anything was dropped; -1 is padding. By default ``expert``.
        valid: bool (tokens,), False for padding, which no statistic or loss counts. None: every token.
        sequence_ids: int64 (tokens,), the sequence each token is of, for losses over a sequence. None: all are one.
        noisy_logits: (tokens, num_experts), what the choice was made by where noise was added; None without.
        noise_std: (tokens, num_experts), its standard deviation; None without.
        computing: how many of the experts, the first, compute something, so that their load has a cost; None: all.
    """

    token: Tensor
    expert: Tensor
    weight: Tensor
    logits: Tensor
    probabilities: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    chosen: Tensor | None = None
    valid: Tensor | None = None
    sequence_ids: Tensor | None = None
    noisy_logits: Tensor | None = None
    noise_std: Tensor | None = None
    computing: int | None = None

    @property
    def tokens(self) -> int:
        """How many tokens were routed, padding included."""
        return self.logits.shape[0]

    @property
    def num_experts(self) -> int:
        """How many experts there are, those that compute nothing included."""
        return self.logits.shape[1]

    @property
    def computing_experts(self) -> int:
        """How many experts compute something: the first ones; what limits an expert's load leaves the others alone."""
        return self.num_experts if self.computing is None else self.computing

    @property
    def choice(self) -> Tensor:
        """int64 (n,), the experts chosen before anything was dropped; -1 is padding."""
        return self.expert if self.chosen is None else self.chosen

    @property
    def dropped(self) -> Tensor:
        """How many triples capacity removed, an int64 scalar (0: dropless)."""
        return ((self.choice >= 0) & (self.expert < 0)).sum()

    def counts(self) -> Tensor:
        """int64 (num_experts,), how often each expert was chosen before anything was dropped, padding left out."""
        return count(self.choice, self.num_experts)

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


@dataclass(frozen=True)
class SoftAssignment:
    """What a soft router decides: every slot of every expert is a mix of tokens, every token a mix of slots.

    Shapes: (..., length) is that of the tokens the router was given; tokens of one row of length are one sequence.

    Attributes:
        dispatch: (..., length, num_experts, slots), sums to 1 over length: what a slot reads.
        combine: (..., length, num_experts, slots), sums to 1 over all slots: what a token gets back.
        logits: (..., length, num_experts, slots), fp32.
        losses: none so far; there is nothing to balance.
    """

    dispatch: Tensor
    combine: Tensor
    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


def count(expert: Tensor, num_experts: int) -> Tensor:
    """int64 (num_experts,): how often each expert stands in ``expert`` int64 (n,); -1 is not counted. Static shapes."""
    keys = torch.where(expert < 0, num_experts, expert)
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=expert.device)
    return counts.scatter_add(0, keys, torch.ones_like(keys))[:-1]
