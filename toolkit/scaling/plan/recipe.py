"""Recipes: how learning rate, batch and weight decay follow from a model's width and the tokens it is trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from toolkit.checks import require, require_choice, require_positive
from toolkit.models import DecoderConfig
from toolkit.training.config import TrainingConfig

TRANSFERS = ("inverse_width", "mup")


@dataclass(frozen=True)
class Search:
    """A search for the learning rate before the study, whose FLOPs are in no run's budget; the report tells them.

    Each family's model of ``base_dim`` is trained on ``flops`` FLOPs at each of the ``factors`` times the recipe's
    rate. What is lowest, by a parabola of loss in log rate where its vertex lies between the factors, is what all of
    the family's runs begin from.

    Attributes:
        flops: of each run, ``exact`` convention.
        factors: of the recipe's rate, ascending, at least three.
        seeds: runs of each.
    """

    flops: float
    factors: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    seeds: int = 1

    def __post_init__(self) -> None:
        require_positive(flops=self.flops, seeds=self.seeds)
        sound = len(self.factors) >= 3 and min(self.factors) > 0 and sorted(set(self.factors)) == list(self.factors)
        require(sound, "factors", self.factors, "three or more positive ones, ascending")


@dataclass(frozen=True)
class Recipe:
    """What a run's hyperparameters are, from its width and its tokens.

    *Learning rate.* ``"inverse_width"``: the peak is learning_rate * base_dim / dim for every parameter. ``"mup"``: it
    is ``learning_rate`` for the embedding and the norms and learning_rate * base_dim / dim for matrices inside the
    layers, with the initialisation and the logits' multiplier that go with it (Yang et al. 2022, Tensor Programs V,
    arXiv 2203.03466, tables 3 and 8; :class:`toolkit.models.DecoderConfig`'s ``mup_base_dim``). Either way the rate
    that is best at ``base_dim`` is used at every width.

    *Batch.* batch_size * (tokens / batch_tokens) ** batch_exponent, its factor to the nearest power of two;
    Bergsma et al. 2025 (arXiv 2505.13738) find the best batch to grow as tokens ** 0.383. With a batch other than the
    training settings' own the rate is multiplied by (batch / that) ** rate_exponent: the square root is the rule for
    Adam (Malladi et al. 2022, arXiv 2205.10287).

    *Weight decay.* AdamW's weights forget over 1 / (rate * weight_decay) steps. With a ``decay_horizon`` the weight
    decay is such that this is that share of the run, whatever its rate and steps (Wang and Aitchison 2024, arXiv
    2405.13698).

    Attributes:
        learning_rate: peak at width ``base_dim``.
        base_dim: the width that the rate is for.
        transfer: ``"inverse_width"`` or ``"mup"``.
        batch_exponent: of tokens; 0 for one batch in all runs.
        batch_tokens: tokens at which the batch is the training settings' own.
        rate_exponent: of the batch in the rate; 0 for one rate whatever the batch.
        decay_horizon: share of a run; None for the training settings' weight decay.
        search: how the learning rate is looked for; None to take the one given.

    Raises:
        ValueError: if a number is not positive, an exponent not within [0, 1], or the transfer unknown.
    """

    learning_rate: float = 0.00625
    base_dim: int = 64
    transfer: str = "inverse_width"
    batch_exponent: float = 0.0
    batch_tokens: float = 1e6
    rate_exponent: float = 0.5
    decay_horizon: float | None = None
    search: Search | None = None

    def __post_init__(self) -> None:
        require_positive(learning_rate=self.learning_rate, base_dim=self.base_dim, batch_tokens=self.batch_tokens)
        require_choice("transfer", self.transfer, TRANSFERS)
        for name in ("batch_exponent", "rate_exponent"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        horizon = self.decay_horizon
        require(horizon is None or horizon > 0, "decay_horizon", horizon, "positive, or None")

    def model(self, model: DecoderConfig) -> DecoderConfig:
        """``model`` in the parametrisation that the rate is transferred by."""
        return replace(model, mup_base_dim=self.base_dim) if self.transfer == "mup" else model

    def at_rate(self, learning_rate: float | None) -> Recipe:
        """The same with another learning rate; None changes nothing."""
        return self if learning_rate is None else replace(self, learning_rate=learning_rate)

    def batch_size(self, tokens: float, base: int) -> int:
        """Sequences in a step of a run of about ``tokens`` tokens, where the settings say ``base``.

        Raises:
            ValueError: if ``base`` cannot be halved as often as so few tokens ask for.
        """
        if self.batch_exponent == 0:
            return base
        factor = 2.0 ** round(self.batch_exponent * math.log2(tokens / self.batch_tokens))
        whole = f"a multiple of {1 / factor:g}: {tokens:.3g} tokens ask for {factor:g} times it (recipe.batch_exponent)"
        require((base * factor).is_integer(), "batch_size", base, whole)
        return int(base * factor)

    def training(self, base: TrainingConfig, dim: int, steps: int, batch_size: int, seed: int) -> TrainingConfig:
        """The training settings of a run of ``steps`` steps at width ``dim``."""
        peak = self.learning_rate * (batch_size / base.batch_size) ** self.rate_exponent
        inside = peak * self.base_dim / dim  # of the matrices inside the layers, which alone decay
        rate = inside if self.transfer == "inverse_width" else peak
        settings = replace(base, steps=steps, batch_size=batch_size, learning_rate=rate, seed=seed)
        if self.decay_horizon is None:
            return settings
        return replace(settings, weight_decay=1 / (inside * self.decay_horizon * steps))

    def describe(self) -> str:
        """One sentence for a report."""
        width = {
            "inverse_width": f"{self.learning_rate * self.base_dim:.3g} / dim for every parameter",
            "mup": f"{self.learning_rate:.3g}, in matrices inside the layers times {self.base_dim} / dim (muP)",
        }[self.transfer]
        decay = "" if self.decay_horizon is None else f"; weights forget over {self.decay_horizon:g} of a run"
        rate = f", the rate as the batch to the {self.rate_exponent:g}" if self.rate_exponent else ""
        batch = f"; batch grows as tokens to the {self.batch_exponent:g}{rate}" if self.batch_exponent else ""
        return f"Peak learning rate {width}{batch}{decay}."
