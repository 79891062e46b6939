"""A Mixture-of-Experts layer that takes a feed-forward layer's place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from toolkit.checks import require
from toolkit.layers.experts import Activation, Experts
from toolkit.layers.feed_forward import FeedForward
from toolkit.layers.joined import join_losses
from toolkit.layers.routed_rows import RoutedRows
from toolkit.layers.soft_slots import mix_slots
from toolkit.layers.zero_experts import ZeroComputationExperts
from toolkit.routing import Assignment, Capacity, RoutingStats, SoftAssignment, SoftRouter, TokenRounding, TopKRouter
from toolkit.work import Work


class Pending(Protocol):
    """Tokens on their way to experts elsewhere, while the layer computes what stays here."""

    def wait(self) -> Tensor:
        """(tokens, dim), what the experts gave."""


Dispatcher = Callable[[nn.Module, Tensor, Assignment], Tensor | Pending]


class LocalDispatcher:
    """All experts are here: tokens (tokens, dim) meet them in place."""

    def __call__(self, experts: nn.Module, tokens: Tensor, assignment: Assignment) -> Tensor:
        """experts(tokens, assignment): (tokens, dim)."""
        y: Tensor = experts(tokens, assignment)
        return y


class MoE(nn.Module):
    """Routes every token to ``top_k`` of ``num_experts`` experts; dropless unless ``capacity_factor`` is given.

    ``losses``, ``assignment`` and ``stats`` are of the last forward: of a layer that is called twice in one step
    (weights shared between depths) the first call's losses are not in ``auxiliary_losses``.

    Args:
        dim: width of a token.
        hidden_dim: width inside one expert.
        num_experts: how many routed experts there are.
        top_k: routed experts per token.
        shared_experts: experts that every token uses besides; they stand as one feed-forward of width
            ``shared_experts * hidden_dim`` (Dai et al. 2024, DeepSeekMoE, arXiv 2401.06066).
        router: any module that maps (tokens, dim) to an ``Assignment`` (or a ``SoftAssignment``); by default
            ``TopKRouter(dim, num_experts + zero_experts.count, top_k)``. To be counted it must say its work and rows
            as :class:`toolkit.routing.Router` does.
        backend, activation, bias, recompute: see :class:`toolkit.layers.experts.Experts`.
        shared_gate: the shared experts' output is times sigmoid(w x) (Qwen2-MoE, arXiv 2407.10671).
        zero_experts: experts without computation, which the router chooses among as well.
        capacity_factor: in training an expert takes at most this times its fair share of the choices, and the others
            are dropped: they add nothing, so that the residual carries the token, and are counted. None: dropless.
        drop_policy: ``"probability"`` keeps an expert's highest gates, ``"position"`` the first come; a
            :class:`toolkit.routing.Capacity` in ``adjust`` has all settings.
        adjust: what is done to the router's assignment before it is computed, in order: ``Capacity``,
            ``TokenRounding``.
        causal: refuse a router, or an adjustment, whose evaluation reads later tokens.
        dispatcher: brings tokens to experts; ``toolkit.parallel`` has others. What it gives may be :class:`Pending`:
            shared experts are computed before it is waited for.

    Raises:
        ValueError: if a size is not positive, ``top_k`` exceeds ``num_experts``, ``shared_experts`` is negative, the
            router is for another number of experts, or is not causal where that is asked.

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
        *,
        activation: str | Activation = "swiglu",
        bias: bool = False,
        recompute: bool = False,
        shared_gate: bool = False,
        zero_experts: ZeroComputationExperts | None = None,
        capacity_factor: float | None = None,
        drop_policy: str = "probability",
        adjust: tuple[Any, ...] = (),
        causal: bool = False,
        dispatcher: Dispatcher | None = None,
    ) -> None:
        super().__init__()
        require(shared_experts >= 0, "shared_experts", shared_experts, "0 or more")
        require(shared_experts > 0 or not shared_gate, "shared_gate", shared_gate, "False without shared_experts")
        fits = capacity_factor is None or capacity_factor > 0
        require(fits, "capacity_factor", capacity_factor, "positive, or None for a dropless layer")
        choices = num_experts + (0 if zero_experts is None else zero_experts.count)
        self.router = TopKRouter(dim, choices, top_k) if router is None else router
        self.experts = Experts(dim, hidden_dim, num_experts, backend, activation, bias, recompute)
        width = shared_experts * hidden_dim
        self.shared = FeedForward(dim, width, activation, bias, kind="shared_experts") if shared_experts else None
        self.shared_gate = SharedGate(dim) if shared_gate else None
        self.zero_experts = zero_experts
        _check_router(self.router, num_experts=choices, top_k=top_k, dim=dim)
        if zero_experts is not None:
            require(zero_experts.dim == dim, "zero_experts.dim", zero_experts.dim, f"this layer's, {dim}")
        capacity = () if capacity_factor is None else (Capacity(capacity_factor, drop_policy),)
        self.adjust = (*capacity, *adjust)
        if isinstance(self.router, SoftRouter):
            right = "left out with a SoftRouter: every expert has its slots, nothing is chosen or dropped"
            for name, given in (("adjust", self.adjust), ("zero_experts", zero_experts), ("dispatcher", dispatcher)):
                require(not given, "capacity_factor" if capacity and name == "adjust" else name, given, right)
        if causal:
            _check_causal(router=(self.router,), adjust=self.adjust)
        self.num_experts, self.top_k = num_experts, top_k
        self.dispatcher: Dispatcher = LocalDispatcher() if dispatcher is None else dispatcher
        self._assignment: Assignment | SoftAssignment | None = None

    def forward(
        self,
        x: Tensor,
        *,
        token_ids: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """x (..., dim) -> (..., dim).

        Args:
            x: the tokens; of (batch, length, dim), each batch row is a sequence.
            token_ids: int64 (...), for routers that hash them.
            sequence_ids: int64 (...), the sequence of each token, in place of the batch row.
            valid: bool (...), False for padding, which goes to no routed expert and is in no statistic or loss.

        Raises:
            ValueError: if x is of another width or dtype than the weights, a keyword's shape is not that of x without
                ``dim``, or the router asks for what is not given.
        """
        dim = self.experts.down_proj.shape[1]
        require(x.shape[-1:] == (dim,), "x.shape", tuple(x.shape), f"(..., dim) with dim={dim}")
        if isinstance(self.router, SoftRouter):
            require(x.ndim >= 2, "x.shape", tuple(x.shape), "(..., length, dim) with a SoftRouter")
            known = {"token_ids": token_ids, "sequence_ids": sequence_ids, "valid": valid}
            assignment = self.router(x, **known)
            routed: Tensor | Pending = mix_slots(x, assignment, self.experts)
            free = None
        else:
            assignment = self._assign(x, token_ids, sequence_ids, valid)
            tokens = x.reshape(-1, dim)
            routed = self.dispatcher(self.experts, tokens, self._computed(assignment))
            free = None if self.zero_experts is None else self.zero_experts(tokens, assignment, self.num_experts)
        shared = self._shared(x)
        y = routed if isinstance(routed, Tensor) else routed.wait()
        y = (y if free is None else y + free).view(x.shape)
        y = y if shared is None else y + shared
        y, losses = join_losses(y, assignment.losses)
        self._assignment = replace(assignment, losses=losses)
        return y

    def _assign(
        self, x: Tensor, token_ids: Tensor | None, sequence_ids: Tensor | None, valid: Tensor | None
    ) -> Assignment:
        """x (..., dim) -> the router's assignment of its tokens, flat, adjusted."""
        if sequence_ids is None and x.ndim == 3:
            sequence_ids = torch.arange(len(x), device=x.device)[:, None].expand(x.shape[:2])
        known = {"token_ids": token_ids, "sequence_ids": sequence_ids, "valid": valid}
        flat = {name: _flat(name, value, x) for name, value in known.items()}
        assignment: Assignment = self.router(x.reshape(-1, x.shape[-1]), **flat)
        assignment = replace(assignment, computing=self.num_experts)
        for change in self.adjust:
            assignment = change(assignment, self.training)
        return assignment

    def _computed(self, assignment: Assignment) -> Assignment:
        """What those experts are given that compute something."""
        if self.zero_experts is None:
            return assignment
        real = assignment.expert < self.num_experts
        return replace(
            assignment,
            expert=torch.where(real, assignment.expert, -1),
            weight=torch.where(real, assignment.weight, 0),
            logits=assignment.logits[:, : self.num_experts],
            probabilities=assignment.probabilities[:, : self.num_experts],
            chosen=None,
        )

    def _shared(self, x: Tensor) -> Tensor | None:
        """x (..., dim) -> (..., dim), what the shared experts add."""
        if self.shared is None:
            return None
        y: Tensor = self.shared(x)
        return y if self.shared_gate is None else self.shared_gate(x) * y

    def __getstate__(self) -> dict[str, Any]:
        """Without the last forward, whose graph can be neither copied nor pickled."""
        return {**self.__dict__, "_assignment": None}

    @property
    def assignment(self) -> Assignment | SoftAssignment:
        """How the last forward routed its tokens.

        Raises:
            ValueError: if there has been no forward.
        """
        if self._assignment is None:
            raise ValueError("assignment: this MoE has not run yet; call it on some input first")
        return self._assignment

    @property
    def has_run(self) -> bool:
        """Whether there is a last forward; not where a layer around this one let no token through."""
        return self._assignment is not None

    @property
    def is_collective(self) -> bool:
        """Whether experts are in other processes too, which must then run this layer as often, if on no token."""
        return not isinstance(self.dispatcher, LocalDispatcher)

    @property
    def losses(self) -> dict[str, Tensor]:
        """The router's losses of the last training forward, by name, already times their coefficients."""
        return {} if self._assignment is None else self._assignment.losses

    @property
    def stats(self) -> RoutingStats:
        """How healthy the last forward's routing was, over this process's tokens.

        Raises:
            ValueError: if there has been no forward, or the router is soft: every expert has all its slots.
        """
        if self._assignment is None:
            raise ValueError("stats: this MoE has not run yet; call it on some input first")
        if isinstance(self._assignment, SoftAssignment):
            raise ValueError("stats: a soft router has none: every expert gets all of its slots")
        return RoutingStats.of(self._assignment)

    @property
    def choices(self) -> int:
        """What the router chooses among: routed experts and those without computation."""
        return self.num_experts + (0 if self.zero_experts is None else self.zero_experts.count)

    def rows(self, seq_len: int) -> RoutedRows:
        """What the routed experts compute of one sequence: pairs of a token and an expert, or a soft router's slots."""
        return RoutedRows.of(self.router, self.num_experts, self.choices, self.adjust, seq_len)

    def triples(self, batch_size: int, seq_len: int) -> int:
        """Triples of a training batch's assignment, or its slots: what the experts have room for, used or not."""
        given: int = batch_size * self.router.triples(seq_len)  # type: ignore[operator]  # a router is any module
        added = (change for change in self.adjust if isinstance(change, TokenRounding))
        return given + sum(change.added(self.choices, batch_size * seq_len) for change in added)

    def experts_per_token(self, seq_len: int) -> float:
        """Routed experts that a token of a training sequence uses on average: all of them with a soft router."""
        if isinstance(self.router, SoftRouter):
            return float(self.num_experts)
        return self.rows(seq_len).training / seq_len

    def work(self, seq_len: int) -> list[Work]:
        """The router, the rows of the routed experts, the shared experts and those without computation."""
        parts = [part for part in (self.shared, self.shared_gate, self.zero_experts) if part is not None]
        others = [work for part in parts for work in part.work(seq_len)]
        routing: list[Work] = self.router.work(seq_len)  # type: ignore[operator]  # a router is any module
        return [*routing, *self.rows(seq_len).work(self.experts), *others]


class SharedGate(nn.Module):
    """sigmoid(w x): how much of the shared experts a token takes."""

    kind = "shared_experts"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, dim))
        nn.init.normal_(self.weight, std=dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., 1)."""
        return torch.sigmoid(nn.functional.linear(x, self.weight))

    def work(self, seq_len: int) -> list[Work]:
        """One row."""
        return [Work.dense(self.kind, seq_len * self.weight.numel())]


def _check_router(router: nn.Module, **sizes: int) -> None:
    """Those that it says must be the layer's."""
    for name, here in sizes.items():
        given = getattr(router, name, None)
        require(given in (None, here), f"router.{name}", given, f"this layer's, {here}")


def _check_causal(**parts: tuple[Any, ...]) -> None:
    """Refuse those whose evaluation reads later tokens; each says so by its ``causal``."""
    for name, given in parts.items():
        for part in given:
            right = "one whose evaluation reads no later token (see its `causal`), or causal=False"
            require(getattr(part, "causal", "always") != "never", name, type(part).__name__, right)


def _flat(name: str, value: Tensor | None, x: Tensor) -> Tensor | None:
    """value (...) -> (tokens,)."""
    if value is None:
        return None
    require(
        value.shape == x.shape[:-1], f"{name}.shape", tuple(value.shape), f"{tuple(x.shape[:-1])}, as x without dim"
    )
    return value.reshape(-1)
