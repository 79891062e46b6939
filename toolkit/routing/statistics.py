"""How healthy a router is: sums that add up over micro-batches, processes and validation passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from toolkit.routing.assignment import Assignment


@dataclass(frozen=True)
class RoutingStats:
    """Sums over routed tokens, from which every health figure follows; ``a + b`` merges two.

    Attributes:
        counts: (num_experts,) assignments each expert received.
        probability_sums: (num_experts,) router probability each expert was given.
        entropy_sum: scalar tensor, sum of the tokens' entropies in nats.
        tokens: scalar tensor, tokens routed.
        dropped_count: scalar tensor, assignments that capacity removed.
    """

    counts: Tensor
    probability_sums: Tensor
    entropy_sum: Tensor
    tokens: Tensor
    dropped_count: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, assignment: Assignment) -> RoutingStats:
        """The sums of one router's forward."""
        p = assignment.probabilities.detach().double()
        # xlogy gives 0 at p = 0, where p log p would be nan.
        return cls(
            counts=torch.bincount(assignment.expert, minlength=assignment.num_experts).double(),
            probability_sums=p.sum(dim=0),
            entropy_sum=-torch.special.xlogy(p, p).sum(),
            tokens=p.new_tensor(float(assignment.tokens)),
            dropped_count=p.new_tensor(float(assignment.dropped)),
        )

    def __add__(self, other: RoutingStats) -> RoutingStats:
        """The sums over both."""
        return RoutingStats.unpack(self.pack() + other.pack())

    def all_reduce(self) -> RoutingStats:
        """The sums over every process of the default group (collective; itself without one)."""
        if not (dist.is_available() and dist.is_initialized()):
            return self
        packed = self.pack()
        dist.all_reduce(packed)
        return RoutingStats.unpack(packed)

    def pack(self) -> Tensor:
        """All sums in one fp64 vector (2 * num_experts + 3,)."""
        scalars = torch.stack([self.entropy_sum, self.tokens, self.dropped_count])
        return torch.cat([self.counts, self.probability_sums, scalars])

    @classmethod
    def unpack(cls, packed: Tensor) -> RoutingStats:
        """The inverse of :meth:`pack`."""
        experts = (len(packed) - 3) // 2
        return cls(packed[:experts], packed[experts : 2 * experts], *packed[2 * experts :].unbind())

    @property
    def load(self) -> Tensor:
        """Share of assignments by expert, (num_experts,), sum 1."""
        return self.counts / self.counts.sum().clamp(min=1.0)

    @property
    def importance(self) -> Tensor:
        """Mean probability by expert, (num_experts,), sum 1 (Shazeer et al. 2017)."""
        return self.probability_sums / self.tokens.clamp(min=1.0)

    @property
    def entropy(self) -> float:
        """Mean entropy of a token's probabilities, nats; ln(num_experts) is undecided, 0 is certain."""
        return float(self.entropy_sum / self.tokens.clamp(min=1.0))

    @property
    def marginal_entropy(self) -> float:
        """Entropy of the importance, nats; less ``entropy`` it is the information experts hold on tokens."""
        return float(-torch.special.xlogy(self.importance, self.importance).sum())

    @property
    def max_violation(self) -> float:
        """(max load - mean load) / mean load: MaxVio of Wang et al. 2024 (arXiv 2408.15664); 0 is balanced."""
        return float(self.load.max() * len(self.load) - 1.0)

    @property
    def dead(self) -> int:
        """Experts that received nothing."""
        return int((self.counts == 0).sum())

    @property
    def dropped(self) -> float:
        """Share of assignments that capacity removed."""
        asked = self.counts.sum() + self.dropped_count
        return float(self.dropped_count / asked.clamp(min=1.0))
