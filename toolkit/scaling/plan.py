"""Plans a study: which models, on how many tokens, so that every run spends its budget and no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from toolkit.checks import require, require_positive
from toolkit.compute import Cost, Memory, cost, memory
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.training.config import TrainingConfig
from toolkit.training.precision import resolve_precision

FAMILIES = ("dense", "moe", "dense+window", "moe+window")
TOLERANCE = 0.01
"""A run's planned FLOPs may differ from its budget by this share."""


class Shape(Protocol):
    """The rule that makes a decoder of any width for each of its families: what a study compares."""

    @property
    def families(self) -> tuple[str, ...]:
        """Names of what can be compared."""
        ...

    def decoder(self, family: str, dim: int, vocab_size: int) -> DecoderConfig:
        """The decoder of ``family`` at width ``dim``; a ``ValueError`` where there is none."""
        ...


@dataclass(frozen=True)
class ModelShape:
    """The rule that makes a decoder of any width, the same for every family.

    A sparse family's model has the dense one's attention, and experts whose chosen width adds up to
    the dense feed-forward's: it differs in the router and in what it does not use.

    Attributes:
        layers: blocks.
        head_dim: a model has dim // head_dim heads, at least one, which share its width.
        queries_per_kv_head: query heads that share a key head.
        feed_forward_ratio: hidden width of the dense feed-forward / dim.
        num_experts, top_k, shared_experts: of the MoE families.
        balance, z_loss: coefficients of the router's losses.
        window: keys that a query of the window families sees, its own included.
        tied_head: the head is the embedding's matrix.

    Raises:
        ValueError: if a size is not positive or they do not fit together.
    """

    layers: int = 2
    head_dim: int = 64
    queries_per_kv_head: int = 1
    feed_forward_ratio: float = 4.0
    num_experts: int = 8
    top_k: int = 2
    shared_experts: int = 0
    balance: float = 0.01
    z_loss: float = 0.001
    window: int = 32
    tied_head: bool = True

    def __post_init__(self) -> None:
        names = ("layers", "head_dim", "queries_per_kv_head", "feed_forward_ratio", "num_experts", "top_k", "window")
        require_positive(**{name: getattr(self, name) for name in names})
        require(self.top_k <= self.num_experts, "top_k", self.top_k, f"at most num_experts={self.num_experts}")
        require(self.shared_experts >= 0, "shared_experts", self.shared_experts, "0 or more")

    @property
    def families(self) -> tuple[str, ...]:
        """Dense and sparse, each with and without a window."""
        return FAMILIES

    def decoder(self, family: str, dim: int, vocab_size: int) -> DecoderConfig:
        """The decoder of ``family`` at width ``dim``.

        Raises:
            ValueError: if the family is unknown or ``dim`` cannot be shared by its heads.
        """
        require(family in FAMILIES, "families", family, "one of " + ", ".join(FAMILIES))
        heads = max(1, dim // self.head_dim)
        even = f"a multiple of {2 * heads}: {heads} heads (dim // head_dim, at least 1) of an even width"
        require(dim % (2 * heads) == 0, "dims", dim, even)
        require(
            heads % self.queries_per_kv_head == 0,
            "queries_per_kv_head", self.queries_per_kv_head, f"a divisor of the {heads} heads at dim={dim}",
        )  # fmt: skip
        pattern = f"Causal() & SlidingWindow({self.window})" if family.endswith("+window") else "Causal()"
        attention = AttentionConfig(heads, heads // self.queries_per_kv_head, dim // heads, pattern)
        block = BlockConfig(attention, self._feed_forward(family, dim))
        return DecoderConfig(vocab_size, dim, (block,) * self.layers, self.tied_head)

    def _feed_forward(self, family: str, dim: int) -> FeedForwardConfig | MoEConfig:
        hidden_dim = round(self.feed_forward_ratio * dim)
        if not family.startswith("moe"):
            return FeedForwardConfig(hidden_dim)
        active = self.top_k + self.shared_experts
        return MoEConfig(
            max(1, round(hidden_dim / active)),
            self.num_experts,
            self.top_k,
            self.shared_experts,
            self.balance,
            self.z_loss,
        )


@dataclass(frozen=True)
class IsoFLOP:
    """One budget and the widths trained on it.

    Attributes:
        flops: training FLOPs of each run, ``exact`` convention.
        dims: widths of the models.
        families: which families are trained on it; None for all of the study's.
    """

    flops: float
    dims: tuple[int, ...]
    families: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require_positive(flops=self.flops)
        require(len(self.dims) > 0 and min(self.dims) > 0, "dims", self.dims, "at least one positive width")


@dataclass(frozen=True)
class Grid:
    """The runs of a study.

    Attributes:
        budgets: what is spent, and on which widths.
        families: what is compared; None for every family of the shape.
        seeds: runs of each cell, with seeds 0, 1, ...
        learning_rate_times_dim: the peak learning rate is this divided by the model's own width, for every family.
    """

    budgets: tuple[IsoFLOP, ...]
    families: tuple[str, ...] | None = None
    seeds: int = 2
    learning_rate_times_dim: float = 0.4

    def __post_init__(self) -> None:
        require_positive(seeds=self.seeds, learning_rate_times_dim=self.learning_rate_times_dim)
        require(len(self.budgets) > 0, "budgets", self.budgets, "at least one")

    def cells(self, known: tuple[str, ...]) -> list[tuple[float, int, str]]:
        """(FLOPs, width, family) of all that is trained for each seed, budget by budget.

        Args:
            known: the families of the shape.

        Raises:
            ValueError: if a budget has no family, or one that the shape does not have.
        """
        cells = []
        for budget in self.budgets:
            families = next((asked for asked in (budget.families, self.families) if asked is not None), known)
            require(len(families) > 0, "families", families, "at least one among " + ", ".join(known))
            for family in families:
                require(family in known, "families", family, "among " + ", ".join(known))
            cells += [(budget.flops, dim, family) for dim in budget.dims for family in families]
        return cells


@dataclass(frozen=True)
class PlannedRun:
    """One run: what is trained, for how long, and what it will cost."""

    family: str
    budget: float
    dim: int
    seed: int
    model: DecoderConfig
    training: TrainingConfig
    cost: Cost = field(repr=False)

    @property
    def name(self) -> str:
        """Unique in a study."""
        return f"{self.family}-dim{self.dim}-flops{_scientific(self.budget)}-seed{self.seed}"

    @property
    def tokens(self) -> int:
        """Tokens it will be trained on."""
        return self.training.steps * self.training.tokens_per_step

    @property
    def flops(self) -> dict[str, float]:
        """Planned training FLOPs of the whole run, by convention."""
        return {name: self.tokens * flops for name, flops in self.cost.training_flops.items()}

    def memory(self, world_size: int = 1) -> Memory:
        """Bytes of training on one device."""
        precision = resolve_precision(self.training.precision, "auto")
        precision = "32-true" if precision == "64-true" else precision
        return memory(self.model, self.training.batch_size // world_size, self.training.context, precision)


def plan_isoflop(grid: Grid, shape: Shape, vocab_size: int, base: TrainingConfig) -> list[PlannedRun]:
    """Every run of the grid, budget by budget, seeds outermost so that a cut-short study is a whole one.

    Args:
        grid: budgets, widths, families and seeds.
        shape: how a width and a family make a model.
        vocab_size: of the tokenizer.
        base: settings all runs share; ``steps``, ``learning_rate`` and ``seed`` are set by the plan.

    Raises:
        ValueError: if a family is not the shape's, a budget is too small for one step, or no whole number of steps
            spends it within 1%.
    """
    runs = [
        _planned(flops, family, dim, seed, grid, shape.decoder(family, dim, vocab_size), base)
        for seed in range(grid.seeds)
        for flops, dim, family in grid.cells(shape.families)
    ]
    names = [run.name for run in runs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    require(not repeated, "budgets", repeated, "a grid that names no cell twice")
    return runs


def _planned(
    budget: float, family: str, dim: int, seed: int, grid: Grid, model: DecoderConfig, base: TrainingConfig
) -> PlannedRun:
    price = cost(model, base.context)
    step = price.training_flops["exact"] * base.tokens_per_step
    require(
        budget >= step, "flops", budget,
        f"at least {step:.4g}, one step of {family} at dim={dim} with {base.tokens_per_step} tokens",
    )  # fmt: skip
    steps = round(budget / step)
    require(
        abs(steps * step / budget - 1) <= TOLERANCE, "flops", budget,
        f"within {TOLERANCE:.0%} of a whole number of steps: {family} at dim={dim} spends {step:.4g} a step; "
        f"take a larger budget or a smaller batch_size",
    )  # fmt: skip
    values = {**base.__dict__, "steps": steps, "learning_rate": grid.learning_rate_times_dim / model.dim, "seed": seed}
    return PlannedRun(family, budget, dim, seed, model, TrainingConfig(**values), price)


def data_warnings(runs: Sequence[PlannedRun], unique_tokens: int) -> list[str]:
    """One sentence for each budget that needs more tokens than there are; empty if none does."""
    lines = []
    for budget in sorted({run.budget for run in runs}):
        need = max(run.tokens for run in runs if run.budget == budget)
        if need > unique_tokens:
            lines.append(
                f"budget {_scientific(budget)} needs {need:,} tokens but the corpus has {unique_tokens:,}: "
                f"{need / unique_tokens:.2f} epochs over the same text"
            )
    return lines


def _scientific(value: float) -> str:
    """3e+11 as 3e11."""
    return f"{value:g}".replace("e+", "e")
