"""GShard's router: two experts a token, the second by chance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn

from toolkit.checks import require, require_choice
from toolkit.routing.assignment import Assignment
from toolkit.routing.noise import Noise
from toolkit.routing.topk import TopKRouter


class GShardRouter(TopKRouter):
    """The two best experts of a softmax, gates normalised over both; a second with a small gate is often left out.

    In training a token keeps its second expert with probability min(1, 2 g2), g2 its normalised gate, which leaves
    the first gate as it was: a token without its second expert gets a sum of gates below 1. In evaluation,
    and with ``second="always"``, it keeps it always. What is left out was never chosen: its ``expert`` and
    ``chosen`` are -1, and it does not count as dropped. Draws come from torch's generator.

    Causal: a token's experts depend on that token alone.

    Cost: how many second experts are kept depends on the gates, so two experts a token is what training computes at
    most (``certainty == "bound"``); evaluation, and ``second="always"``, compute just that.
    :func:`toolkit.compute.measure` counts what a run computes.

    Args:
        dim: width of a token.
        num_experts: how many experts there are.
        second: ``"random"`` or ``"always"``.
        noise: a noise of :mod:`toolkit.routing.noise`, in training only; the paper has none.
        balancer: see :class:`TopKRouter`.
        losses: see :class:`toolkit.routing.router.GatedRouter`.

    Raises:
        ValueError: if a size is not positive, there are fewer than two experts, or ``second`` is unknown.

    Source: Lepikhin et al. 2020 (arXiv 2006.16668), algorithm 1.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        second: str = "random",
        noise: Noise | None = None,
        balancer: nn.Module | None = None,
        losses: Iterable[nn.Module] | None = None,
    ) -> None:
        require(num_experts >= 2, "num_experts", num_experts, "2 or more")
        require_choice("second", second, ("random", "always"))
        super().__init__(dim, num_experts, 2, normalize=True, noise=noise, balancer=balancer, losses=losses)
        self.second = second
        self.certainty = "bound" if second == "random" else "exact"

    def route(
        self, logits: Tensor, *, token_ids: Tensor | None, sequence_ids: Tensor | None, valid: Tensor | None
    ) -> Assignment:
        """logits (tokens, num_experts) -> tokens * 2 triples, some second ones -1."""
        both = super().route(logits, token_ids=token_ids, sequence_ids=sequence_ids, valid=valid)
        if self.second == "always" or not self.training:
            return both
        gates = rearrange(both.weight.detach(), "(t k) -> t k", k=2)
        kept = self.replayed(torch.rand_like(gates[:, 1]) < 2 * gates[:, 1])
        stays = rearrange(torch.stack([torch.ones_like(kept), kept], dim=1), "t k -> (t k)")
        expert, weight = torch.where(stays, both.expert, -1), torch.where(stays, both.weight, 0)
        return replace(both, expert=expert, weight=weight)

    def extra_repr(self) -> str:
        """Sizes and settings, for ``print(model)``."""
        return f"{super().extra_repr()}, second={self.second}"
