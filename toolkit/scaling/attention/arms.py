"""What a study of attention compares: decoders that differ in what their queries see, and in how that is spent."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import count

from toolkit.checks import require, require_positive
from toolkit.compute import cost
from toolkit.models import DecoderConfig, FeedForwardConfig
from toolkit.scaling.attention.equal_flops import size_for_flops
from toolkit.scaling.plan import ModelShape

FULL = "full"
"""The family that every study of attention has besides its arms: causal attention to all that came before."""

ALLOCATIONS = ("tokens", "size")
"""What an arm's saved FLOPs are spent on: more text for a model of full attention's size, or a larger model."""

GLOBALS = "{globals}"
"""What stands in a pattern for global tokens scattered through the context."""


@dataclass(frozen=True)
class AttentionArm:
    """One way to attend.

    Attributes:
        name: of the arm, in run names and tables.
        patterns: as text (:func:`toolkit.attention.selection.parse_sparsity`), one a layer, from the first layer on and
            over again. ``{globals}`` stands for ``GlobalTokens`` of one position in every ``global_every``.
        about: one sentence for the report: what it is and whose.
        global_every: distance of the global tokens, each the last of its stretch: a leading one would have nothing
            before it to pass on, since no query sees what comes later.

    Raises:
        ValueError: if the name does not suit a folder, there is no pattern, or ``global_every`` stands without
            ``{globals}`` or the other way round.
    """

    name: str
    patterns: tuple[str, ...]
    about: str = ""
    global_every: int | None = None

    def __post_init__(self) -> None:
        fits = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+_.-]*", self.name) is not None and self.name != FULL
        require(fits, "name", self.name, f"letters, digits, '+', '-', '_' and '.', and not {FULL!r}")
        require(len(self.patterns) > 0, "patterns", self.patterns, "at least one pattern, as text")
        used = any(GLOBALS in pattern for pattern in self.patterns)
        right = f"a positive distance, as a pattern has {GLOBALS}" if used else f"None, as no pattern has {GLOBALS}"
        every = self.global_every
        require((every is not None and every > 0) if used else every is None, "global_every", every, right)

    def pattern(self, layer: int, context: int) -> str:
        """What queries of ``layer`` see in sequences of ``context`` tokens."""
        text = self.patterns[layer % len(self.patterns)]
        if self.global_every is None:
            return text
        positions = list(range(self.global_every - 1, context, self.global_every))
        return text.replace(GLOBALS, f"GlobalTokens(positions={positions})")


@dataclass(frozen=True)
class AttentionArms:
    """A shape whose families are ``full`` and, for every arm, one family for each way to spend what it saves.

    ``<arm>-tokens`` has the full model's widths; what it saves buys more tokens of the same budget. ``<arm>-size`` is
    wider, or narrower where the arm costs more, until a token costs what it costs the full model at this context, so
    that it trains on as many tokens.

    Attributes:
        arms: what is compared with full attention.
        context: tokens of a sequence; ``training.context`` sets it.
        layers, head_dim, queries_per_kv_head, feed_forward_ratio, tied_head: see
            :class:`toolkit.scaling.plan.ModelShape`.

    Raises:
        ValueError: if two arms have one name, or a size is not positive.
    """

    arms: tuple[AttentionArm, ...]
    context: int = 128
    layers: int = 6
    head_dim: int = 64
    queries_per_kv_head: int = 1
    feed_forward_ratio: float = 4.0
    tied_head: bool = True

    def __post_init__(self) -> None:
        repeated = sorted({name for name in self.families if self.families.count(name) > 1})
        require(not repeated, "arms", repeated, "named each by a name of its own")
        require_positive(context=self.context)
        _ = self._full  # refuses sizes

    @property
    def baseline(self) -> str:
        """The family that the others are held against."""
        return FULL

    @property
    def families(self) -> tuple[str, ...]:
        """``full``, and each arm's two allocations, as the arms were given."""
        return FULL, *(family_name(arm.name, allocation) for arm in self.arms for allocation in ALLOCATIONS)

    def decoder(self, family: str, dim: int, vocab_size: int) -> DecoderConfig:
        """The decoder of ``family`` where the full model is ``dim`` wide.

        Raises:
            ValueError: if the family is unknown, ``dim`` cannot be shared by its heads, a pattern is not understood,
                or no size of the arm costs what the full model does.
        """
        require(family in self.families, "families", family, "one of " + ", ".join(self.families))
        require(dim % self.head_dim == 0, "dims", dim, f"a multiple of head_dim={self.head_dim}")
        full = self._full.decoder("dense", dim, vocab_size)
        if family == FULL:
            return full
        name, _, allocation = family.rpartition("-")
        arm = next(arm for arm in self.arms if arm.name == name)
        return self._with(arm, full) if allocation == "tokens" else self._sized(arm, full)

    def _sized(self, arm: AttentionArm, full: DecoderConfig) -> DecoderConfig:
        """The arm's decoder whose token costs as much as the full one's."""

        def sized(dim: int, hidden_dim: int) -> DecoderConfig:
            model = self._with(arm, self._full.decoder("dense", dim, full.vocab_size))
            feed_forward = FeedForwardConfig(hidden_dim)
            return replace(model, blocks=tuple(replace(block, feed_forward=feed_forward) for block in model.blocks))

        step = self.head_dim * self.queries_per_kv_head  # whole heads, and whole groups of them
        flops = cost(full, self.context).training_flops["exact"]
        return size_for_flops(sized, count(step, step), self.feed_forward_ratio, self.context, flops)

    def _with(self, arm: AttentionArm, model: DecoderConfig) -> DecoderConfig:
        """``model`` with the arm's pattern in each layer."""
        blocks = [
            replace(block, attention=replace(block.attention, pattern=arm.pattern(layer, self.context)))
            for layer, block in enumerate(model.blocks)
        ]
        return replace(model, blocks=tuple(blocks))

    @property
    def _full(self) -> ModelShape:
        return ModelShape(
            layers=self.layers,
            head_dim=self.head_dim,
            queries_per_kv_head=self.queries_per_kv_head,
            feed_forward_ratio=self.feed_forward_ratio,
            tied_head=self.tied_head,
        )


def family_name(arm: str, allocation: str) -> str:
    """The family of an arm that spends what it saves on ``allocation``."""
    return f"{arm}-{allocation}"
