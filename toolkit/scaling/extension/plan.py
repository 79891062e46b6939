"""Plans a study of context extension: one model trained at L, the same extra FLOPs for every method at a longer one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from toolkit.checks import require, require_positive
from toolkit.compute import Cost, cost
from toolkit.data import TaskMixture
from toolkit.data.synthetic import Passkey
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig
from toolkit.scaling.extension.methods import BASELINE, Method, Stretch, methods_named
from toolkit.training.config import TrainingConfig


@dataclass(frozen=True)
class ExtensionModel:
    """The model: a dense decoder with full causal attention.

    Attributes:
        dim: width.
        layers: blocks.
        heads: query heads, which share the width.
        kv_heads: key and value heads; None for as many.
        feed_forward_dim: hidden width of the SwiGLU.
        rope_base: theta.

    Raises:
        ValueError: if a size is not positive or the heads do not divide the width into even parts above 2.
    """

    dim: int = 64
    layers: int = 3
    heads: int = 2
    kv_heads: int | None = None
    feed_forward_dim: int = 192
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        names = ("dim", "layers", "heads", "feed_forward_dim", "rope_base")
        require_positive(**{name: getattr(self, name) for name in names})
        width = self.dim / self.heads
        require(
            width % 2 == 0 and width > 2, "heads", self.heads, f"a divisor of dim={self.dim} into even heads above 2"
        )

    @property
    def head_dim(self) -> int:
        """Width of one head, all of it rotated."""
        return self.dim // self.heads

    def decoder(self, vocab_size: int, scaling: str | None = None) -> DecoderConfig:
        """The decoder, its rotary embedding stretched by ``scaling``."""
        attention = AttentionConfig(self.heads, self.kv_heads, rope_base=self.rope_base, rope_scaling=scaling)
        return DecoderConfig(
            vocab_size, self.dim, (BlockConfig(attention, FeedForwardConfig(self.feed_forward_dim)),) * self.layers
        )


@dataclass(frozen=True)
class ExtensionConfig:
    """What is compared, and how long the fine-tune is.

    Attributes:
        multiples: lengths of the evaluation over L, ascending from 1; the last is the target, s, for every method.
        tune_multiple: context of the fine-tune over L.
        extra_share: FLOPs of each fine-tune over those of the base run.
        tune_learning_rate: its peak.
        methods: names of :data:`toolkit.scaling.extension.methods.METHODS`; None for all.
        seeds: base runs, with seeds 0, 1, ..., each extended by every method.
        digits, words: of :class:`toolkit.data.synthetic.Passkey`.
        share: rows of every batch that ask a passkey, in both runs.

    Raises:
        ValueError: if a value is out of range or a method unknown.
    """

    multiples: tuple[int, ...] = (1, 2, 4, 8, 16)
    tune_multiple: int = 4
    extra_share: float = 0.1
    tune_learning_rate: float = 1e-3
    methods: tuple[str, ...] | None = None
    seeds: int = 1
    digits: int = 3
    words: int = 8
    share: float = 0.5

    def __post_init__(self) -> None:
        multiples = self.multiples
        rising = len(multiples) > 1 and multiples[0] == 1 and list(multiples) == sorted(set(multiples))
        require(rising, "multiples", multiples, "1, and then larger ones, ascending")
        whole = all(multiples[-1] % multiple == 0 for multiple in multiples)
        require(whole, "multiples", multiples, "divisors of the last, so that all are scored on the same text")
        require(self.tune_multiple > 0, "tune_multiple", self.tune_multiple, "positive")
        require_positive(
            extra_share=self.extra_share, tune_learning_rate=self.tune_learning_rate, seeds=self.seeds,
            digits=self.digits, words=self.words,
        )  # fmt: skip
        require(0 < self.share < 1, "share", self.share, "above 0 and below 1: text and passkeys are both learned")
        methods_named(self.methods)


@dataclass(frozen=True)
class PlannedStage:
    """One training run of the study.

    Attributes:
        method: what the rotary embedding is stretched by; the baseline's for the base run.
        seed: of the base run it is or goes on from.
        model: with the method's scaling.
        training: its settings; ``steps`` spends ``budget``.
        budget: training FLOPs, ``exact`` convention.
        base: whether it is the base run.
    """

    method: Method
    seed: int
    model: DecoderConfig
    training: TrainingConfig
    budget: float
    base: bool

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"base-seed{self.seed}" if self.base else f"{self.method.name}-seed{self.seed}"

    @property
    def cost(self) -> Cost:
        """Of its model at its context."""
        return cost(self.model, self.training.context)

    @property
    def flops(self) -> float:
        """What its steps spend."""
        return self.training.steps * self.step_flops

    @property
    def step_flops(self) -> float:
        """Of one step."""
        return self.cost.training_flops["exact"] * self.training.tokens_per_step


def passkeys(config: ExtensionConfig, length: int, first_id: int) -> TaskMixture:
    """Passkeys of that length among text of ``first_id`` token ids."""
    return TaskMixture(Passkey(length=length, digits=config.digits, words=config.words), config.share, first_id)


def scaled_models(
    model: ExtensionModel, config: ExtensionConfig, length: int, vocab_size: int
) -> list[tuple[Method, DecoderConfig]]:
    """Every method's decoder, all for the same target: s is the last of the multiples.

    Raises:
        ValueError: naming the field of a scaling that does not go with the model.
    """
    stretch = Stretch(length, float(config.multiples[-1]), model.head_dim, model.rope_base)
    made = [(method, model.decoder(vocab_size, method.text(stretch))) for method in methods_named(config.methods)]
    for _, decoder in made:
        cost(decoder, length)  # builds it, so that a scaling that does not fit is refused now
    return made


def plan_base(model: ExtensionModel, vocab_size: int, training: TrainingConfig, seed: int) -> PlannedStage:
    """The run at L that every method begins from."""
    method, decoder = methods_named((BASELINE,))[0], model.decoder(vocab_size)
    stage = PlannedStage(method, seed, decoder, replace(training, seed=seed), 1.0, True)
    return replace(stage, budget=stage.flops)


def plan_tuning(
    base: PlannedStage, models: Sequence[tuple[Method, DecoderConfig]], config: ExtensionConfig
) -> list[PlannedStage]:
    """The fine-tunes that go on from ``base``: the same FLOPs for each method, to half a step.

    A step has the base run's tokens, in fewer and longer sequences, and its data another seed.

    Raises:
        ValueError: if a batch cannot be so cut, or the extra FLOPs do not reach one step.
    """
    batch, multiple = base.training.batch_size, config.tune_multiple
    require(batch % multiple == 0, "training.batch_size", batch, f"a multiple of tune_multiple={multiple}")
    context, rows = base.training.context * multiple, batch // multiple
    mixed = 0 < round(config.share * rows) < rows
    require(mixed, "share", config.share, f"such that the fine-tune's {rows} rows hold both text and passkeys")
    budget = config.extra_share * base.budget
    stages = []
    for method, model in models:
        step = cost(model, context).training_flops["exact"] * context * rows
        steps = round(budget / step)
        require(
            steps > 0,
            "extra_share",
            config.extra_share,
            f"at least {step / base.budget:.2g}, one step of the fine-tune",
        )
        training = replace(
            base.training,
            steps=steps, context=context, batch_size=rows, learning_rate=config.tune_learning_rate,
            seed=config.seeds + base.seed, evaluations=1,
        )  # fmt: skip
        stages.append(PlannedStage(method, base.seed, model, training, budget, False))
    return stages
