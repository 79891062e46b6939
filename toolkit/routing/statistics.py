"""How healthy a router is: sums that add up over micro-batches, processes and validation passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from toolkit.routing.assignment import Assignment
from toolkit.routing.reduce import all_reduce
from toolkit.routing.valid import n_valid, only_valid

SCALARS = 7
"""Fields of :class:`RoutingStats` after the two that have an entry for each expert."""


@dataclass(frozen=True)
class RoutingStats:
    """Sums over routed tokens, from which every health figure follows; ``a + b`` merges two. Padding is in none.

    All are fp64 tensors, on the device: reading a figure waits for it, so take ``.cpu()`` first to read many.

    Attributes:
        counts: (num_experts,) how often each expert was chosen, before anything was dropped.
        probability_sums: (num_experts,) router probability each expert was given.
        entropy_sum: scalar, sum of the tokens' entropies in nats.
        tokens: scalar, tokens routed.
        dropped_count: scalar, choices that capacity removed.
        gate_sum: scalar, probability of all that was chosen.
        logit_square_sum: scalar, of all logits.
        non_finite: scalar, logits that are infinite or not a number.
        logit_max: scalar, the largest magnitude of a logit; merging takes the larger.
    """

    counts: Tensor
    probability_sums: Tensor
    entropy_sum: Tensor
    tokens: Tensor
    dropped_count: Tensor
    gate_sum: Tensor
    logit_square_sum: Tensor
    non_finite: Tensor
    logit_max: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, assignment: Assignment) -> RoutingStats:
        """The sums of one router's forward.

        Each token's num_experts terms are added in the table's fp32 and only those sums in fp64: torch adds 2^9 terms
        in blocks, to some 1e-7 of the sum of their magnitudes, and a table of doubles would cost as much as routing.
        """
        p, logits = (
            only_valid(table.detach(), assignment.valid) for table in (assignment.probabilities, assignment.logits)
        )
        magnitude = logits.abs()
        choice = assignment.choice
        chosen = p.take(assignment.token * assignment.num_experts + choice.clamp(min=0))
        return cls(
            counts=assignment.counts().double(),
            probability_sums=p.sum(dim=0, dtype=torch.float64),
            entropy_sum=torch.special.entr(p).sum(dim=1).sum(dtype=torch.float64),  # entr(0) = 0
            tokens=n_valid(p, assignment.valid).double(),
            dropped_count=assignment.dropped.double(),
            gate_sum=torch.where(choice < 0, 0, chosen).sum(dtype=torch.float64),
            logit_square_sum=logits.square().sum(dim=1).sum(dtype=torch.float64),
            non_finite=(~torch.isfinite(magnitude)).sum().double(),
            logit_max=magnitude.amax().double() if magnitude.numel() else p.new_zeros((), dtype=torch.float64),
        )

    @classmethod
    def none(cls, num_experts: int, device: torch.device | str = "cpu") -> RoutingStats:
        """The sums over no token."""
        return cls.unpack(torch.zeros(2 * num_experts + SCALARS, dtype=torch.float64, device=device))

    def __add__(self, other: RoutingStats) -> RoutingStats:
        """The sums over both."""
        one, two = self.pack(), other.pack()
        return RoutingStats.unpack(torch.cat([(one + two)[:-1], torch.maximum(one, two)[-1:]]))

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> RoutingStats:
        """The sums over the processes of ``group`` (collective; equal to itself without a process group).

        None: those that share the batch, see :func:`toolkit.routing.reduce.set_batch_group`.
        """
        packed = self.pack()
        sums, most = all_reduce(packed[:-1], group), all_reduce(packed[-1:], group, largest=True)
        return RoutingStats.unpack(torch.cat([sums, most]))

    def cpu(self) -> RoutingStats:
        """The same on the host, in one copy: reading figures then waits for nothing."""
        return RoutingStats.unpack(self.pack().cpu())

    def pack(self) -> Tensor:
        """All of it in one fp64 vector (2 * num_experts + 7,), the maximum last."""
        scalars = (self.entropy_sum, self.tokens, self.dropped_count, self.gate_sum, self.logit_square_sum)
        return torch.cat([self.counts, self.probability_sums, torch.stack([*scalars, self.non_finite, self.logit_max])])

    @classmethod
    def unpack(cls, packed: Tensor) -> RoutingStats:
        """The inverse of :meth:`pack`."""
        experts = (len(packed) - SCALARS) // 2
        return cls(packed[:experts], packed[experts : 2 * experts], *packed[2 * experts :].unbind())

    @property
    def load(self) -> Tensor:
        """Share of the choices by expert, (num_experts,), sum 1."""
        return self.counts / self.counts.sum().clamp(min=1.0)

    @property
    def importance(self) -> Tensor:
        """Mean probability by expert, (num_experts,), sum 1 (Shazeer et al. 2017 sum it: arXiv 1701.06538)."""
        return self.probability_sums / self.tokens.clamp(min=1.0)

    @property
    def entropy(self) -> float:
        """Mean entropy of a token's probabilities, nats; ln(num_experts) is undecided, 0 is certain."""
        return float(self.entropy_sum / self.tokens.clamp(min=1.0))

    @property
    def marginal_entropy(self) -> float:
        """Entropy of the importance, nats."""
        return float(torch.special.entr(self.importance).sum())

    @property
    def mutual_information(self) -> float:
        """``marginal_entropy - entropy``: nats that an expert, drawn by probability, tells of its token; 0 or more."""
        return self.marginal_entropy - self.entropy

    @property
    def max_violation(self) -> float:
        """(max load - mean load) / mean load: MaxVio of Wang et al. 2024 (arXiv 2408.15664); 0 is balanced.

        Of one batch their MaxVio_batch; of the sum over a validation pass their MaxVio_global; nan of no token.
        """
        violation = float(self.load.max() * len(self.load) - 1.0)
        return violation if violation >= 0 else math.nan

    @property
    def min_load(self) -> float:
        """The least chosen expert's load over the mean load; 1 is balanced, 0 a dead expert."""
        return float(self.load.min() * len(self.load))

    @property
    def load_variation(self) -> float:
        """Coefficient of variation of the load: its population standard deviation over its mean; 0 is balanced."""
        return float(self.load.std(correction=0) * len(self.load))

    @property
    def dead(self) -> int:
        """Experts that were chosen by no token."""
        return int((self.counts == 0).sum())

    @property
    def dropped(self) -> float:
        """Share of the choices that capacity removed."""
        return float(self.dropped_count / self.counts.sum().clamp(min=1.0))

    @property
    def gate_mass(self) -> float:
        """Mean over tokens of the probability of what was chosen; 1: nothing is left for the other experts."""
        return float(self.gate_sum / self.tokens.clamp(min=1.0))

    @property
    def logit_rms(self) -> float:
        """Root of the mean square of the router's logits."""
        return float((self.logit_square_sum / (self.tokens * len(self.counts)).clamp(min=1.0)).sqrt())
