"""What a study of routing compares: decoders that differ in how they route and in nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from toolkit.checks import require, require_positive
from toolkit.models import BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.scaling.plan import ModelShape

DENSE = "dense"
"""The family that every study of routing has besides its arms."""


@dataclass(frozen=True)
class Arm:
    """One way to route; what is not said here is :class:`toolkit.models.MoEConfig`'s.

    The width of its experts is set so that a token's experts, shared ones included, are together as wide as the dense
    feed-forward.

    Attributes:
        name: of the family, in run names and tables.
        about: one sentence for the report: what it is and whose.
        router: as text, see :func:`toolkit.routing.build_router`; None: top-k with Switch's loss and the z-loss.
        num_experts: routed experts; 0 for a dense feed-forward.
        top_k: choices per token.
        experts_per_token: routed experts that compute a token, on average, where that is not ``top_k`` (nor, with
            experts that compute nothing, its fair share): num_experts * slots / context with a soft router.
        shared_experts, shared_gate, capacity_factor, drop_policy, adjust, identity_experts, zero_experts,
            constant_experts: see ``MoEConfig``.
        depth_capacity: every other layer, from the second on, computes only this share of a sequence's tokens
            (:class:`toolkit.layers.MixtureOfDepths`); None: every layer computes all.
        causal: evaluation reads no later token. False takes any router, and keeps the arm apart in the report.

    Raises:
        ValueError: if the name does not suit a folder, or a size is out of its range.
    """

    name: str
    about: str = ""
    router: str | None = None
    num_experts: int = 8
    top_k: int = 2
    experts_per_token: float | None = None
    shared_experts: int = 0
    shared_gate: bool = False
    capacity_factor: float | None = None
    drop_policy: str = "probability"
    adjust: tuple[str, ...] = ()
    identity_experts: int = 0
    zero_experts: int = 0
    constant_experts: int = 0
    depth_capacity: float | None = None
    causal: bool = True

    def __post_init__(self) -> None:
        fits = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+_.-]*", self.name) is not None and self.name != DENSE
        require(fits, "name", self.name, f"letters, digits, '+', '-', '_' and '.', and not {DENSE!r}")
        require(self.num_experts >= 0, "num_experts", self.num_experts, "0 (a dense feed-forward) or more")
        require_positive(top_k=self.top_k)
        given = self.experts_per_token
        require(given is None or given > 0, "experts_per_token", given, "positive, or None for the router's own")

    @property
    def active_experts(self) -> float:
        """Experts that compute a token, shared ones included; those without computation take their fair share off."""
        free = self.identity_experts + self.zero_experts + self.constant_experts
        routed = self.top_k * self.num_experts / (self.num_experts + free)
        return self.shared_experts + (routed if self.experts_per_token is None else self.experts_per_token)

    def feed_forward(self, hidden_dim: int) -> FeedForwardConfig | MoEConfig:
        """The layer that computes as much for a token as a dense one of ``hidden_dim``.

        Raises:
            ValueError: as ``MoEConfig`` does.
        """
        if self.num_experts == 0:
            return FeedForwardConfig(hidden_dim)
        return MoEConfig(
            hidden_dim=max(1, round(hidden_dim / self.active_experts)),
            num_experts=self.num_experts,
            top_k=self.top_k,
            shared_experts=self.shared_experts,
            router=self.router,
            capacity_factor=self.capacity_factor,
            drop_policy=self.drop_policy,
            adjust=self.adjust,
            identity_experts=self.identity_experts,
            zero_experts=self.zero_experts,
            constant_experts=self.constant_experts,
            shared_gate=self.shared_gate,
            causal=self.causal,
        )


@dataclass(frozen=True)
class RoutingArms:
    """A shape whose families are ways to route, and ``dense``: all of the same attention, depth and active width.

    Attributes:
        arms: what is compared.
        baseline: the arm, or ``dense``, that the others are held against.
        layers, head_dim, queries_per_kv_head, feed_forward_ratio, tied_head: see
            :class:`toolkit.scaling.plan.ModelShape`.

    Raises:
        ValueError: if two arms have one name, there is no baseline among them, or a size is not positive.
    """

    arms: tuple[Arm, ...]
    baseline: str = DENSE
    layers: int = 2
    head_dim: int = 64
    queries_per_kv_head: int = 1
    feed_forward_ratio: float = 4.0
    tied_head: bool = True

    def __post_init__(self) -> None:
        repeated = sorted({name for name in self.families if self.families.count(name) > 1})
        require(not repeated, "arms", repeated, "named each by a name of its own")
        require(self.baseline in self.families, "baseline", self.baseline, "one of " + ", ".join(self.families))
        _ = self._dense  # refuses sizes

    @property
    def families(self) -> tuple[str, ...]:
        """The dense model and the arms, as they were given."""
        return DENSE, *(arm.name for arm in self.arms)

    @property
    def not_causal(self) -> tuple[str, ...]:
        """Families whose evaluation may read later tokens: their loss is no language model's."""
        return tuple(arm.name for arm in self.arms if not arm.causal)

    def decoder(self, family: str, dim: int, vocab_size: int) -> DecoderConfig:
        """The decoder of ``family`` at width ``dim``.

        Raises:
            ValueError: if the family is unknown, ``dim`` cannot be shared by its heads, or the arm makes no layer.
        """
        require(family in self.families, "families", family, "one of " + ", ".join(self.families))
        dense = self._dense.decoder(DENSE, dim, vocab_size)
        arm = next((arm for arm in self.arms if arm.name == family), None)
        return dense if arm is None else replace(dense, blocks=self._blocks(arm, dense))

    def _blocks(self, arm: Arm, dense: DecoderConfig) -> tuple[BlockConfig, ...]:
        """The dense decoder's layers with the arm's feed-forward, and its depths in every other one."""
        feed_forward = arm.feed_forward(round(self.feed_forward_ratio * dense.dim))
        whole = replace(dense.blocks[0], feed_forward=feed_forward)
        part = replace(whole, depth_capacity=arm.depth_capacity)
        return tuple(part if layer % 2 else whole for layer in range(self.layers))

    @property
    def _dense(self) -> ModelShape:
        return ModelShape(
            layers=self.layers,
            head_dim=self.head_dim,
            queries_per_kv_head=self.queries_per_kv_head,
            feed_forward_ratio=self.feed_forward_ratio,
            tied_head=self.tied_head,
        )
