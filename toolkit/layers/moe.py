"""A Mixture-of-Experts layer that takes a feed-forward layer's place."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.checks import require
from toolkit.layers.experts import Experts
from toolkit.layers.feed_forward import SwiGLU
from toolkit.routing import Assignment, RoutingStats, TopKRouter
from toolkit.work import Work


class MoE(nn.Module):
    """Routes every token to ``top_k`` of ``num_experts`` SwiGLU experts; nothing is dropped.

    Args:
        dim: width of a token.
        hidden_dim: width inside one expert.
        num_experts: how many routed experts there are.
        top_k: routed experts per token.
        shared_experts: experts that every token uses besides, without a gate; they stand as one SwiGLU
            of width ``shared_experts * hidden_dim`` (Dai et al. 2024, DeepSeekMoE, arXiv 2401.06066).
        router: any module that maps (tokens, dim) to an ``Assignment``; by default
            ``TopKRouter(dim, num_experts, top_k)``.
        backend: how the experts are computed; see :class:`toolkit.layers.experts.Experts`.

    Raises:
        ValueError: if a size is not positive, ``top_k`` exceeds ``num_experts``, or
            ``shared_experts`` is negative, or the router is for another number of experts.

    Source: Shazeer et al. 2017 (arXiv 1701.06538), equation 1.

    >>> moe = MoE(dim=16, hidden_dim=32, num_experts=4, top_k=2)
    >>> moe(torch.randn(3, 5, 16)).shape
    torch.Size([3, 5, 16])
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        top_k: int,
        shared_experts: int = 0,
        router: nn.Module | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        require(shared_experts >= 0, "shared_experts", shared_experts, "0 or more")
        self.router = TopKRouter(dim, num_experts, top_k) if router is None else router
        self.experts = Experts(dim, hidden_dim, num_experts, backend)
        self.shared = SwiGLU(dim, shared_experts * hidden_dim, kind="shared_experts") if shared_experts else None
        for name, here in (("num_experts", num_experts), ("top_k", top_k)):
            given = getattr(self.router, name, here)
            require(given == here, f"router.{name}", given, f"this layer's, {here}")
        self.top_k = top_k
        self._assignment: Assignment | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        tokens = x.reshape(-1, x.shape[-1])
        assignment = self.router(tokens)
        self._assignment = assignment
        y = self.experts(tokens, assignment)
        if self.shared is not None:
            y = y + self.shared(tokens)
        return y.reshape(x.shape)

    def __getstate__(self) -> dict[str, Any]:
        """Without the last forward, whose graph can be neither copied nor pickled."""
        return {**self.__dict__, "_assignment": None}

    @property
    def losses(self) -> dict[str, Tensor]:
        """The router's losses of the last training forward, by name, already times their coefficients."""
        return {} if self._assignment is None else self._assignment.losses

    @property
    def stats(self) -> RoutingStats:
        """How the last forward routed this process's tokens.

        Raises:
            ValueError: if there has been no forward.
        """
        if self._assignment is None:
            raise ValueError("stats: this MoE has not run yet; call it on some input first")
        return RoutingStats.of(self._assignment)

    def work(self, seq_len: int) -> list[Work]:
        """The router, ``top_k`` experts a token, and the shared experts."""
        shared = [] if self.shared is None else self.shared.work(seq_len)
        routed: list[Work] = self.router.work(seq_len)  # type: ignore[operator]  # a router is any module
        return [*routed, *self.experts.work(seq_len * self.top_k), *shared]


def auxiliary_losses(model: nn.Module) -> dict[str, Tensor]:
    """The losses of every MoE in ``model`` in its last training forward, by name.

    Each is coefficient x mean over the layers that have it, a scalar tensor that carries gradient: add
    them to the task's loss. Empty for a dense model and in eval mode.

    >>> moe = MoE(dim=16, hidden_dim=32, num_experts=4, top_k=2)
    >>> _ = moe(torch.randn(5, 16))
    >>> sorted(auxiliary_losses(moe))
    ['balance', 'z']
    """
    found: dict[str, list[Tensor]] = defaultdict(list)
    for module in model.modules():
        if isinstance(module, MoE):
            for name, loss in module.losses.items():
                found[name].append(loss)
    return {name: torch.stack(losses).mean() for name, losses in found.items()}
