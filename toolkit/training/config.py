"""The settings of one training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from toolkit.checks import require, require_choice, require_positive
from toolkit.layers.recomputation import require_recompute

SCHEDULES = ("cosine", "wsd")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "64-true")
OF_THE_DECAY = ("steps", "warmup_share", "warmup_steps", "decay_share", "final_share")
"""Settings by which two ``"wsd"`` runs of one warmup may differ and be the same until the first of them decays."""
OF_NO_STEP = ("evaluations", "checkpoint_minutes", "recompute")
"""Settings that change nothing of what is learned."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a decoder is trained.

    Attributes:
        steps: optimizer steps.
        context: tokens of a sequence that are predicted.
        batch_size: sequences in a step, over all devices.
        learning_rate: its peak.
        schedule: ``"cosine"``: linear warmup, then half a cosine down to ``final_share`` of the peak;
            ``"wsd"``: warmup, stable, then linear decay over the last ``decay_share`` of the steps.
        warmup_share: share of the steps that the learning rate rises for.
        warmup_steps: the same in steps, in place of ``warmup_share`` where it is given: a ``"wsd"`` run is then, until
            its decay, that of any other number of steps.
        decay_share: share of the steps that ``"wsd"`` decays for.
        final_share: the last learning rate, as a share of the peak.
        weight_decay: AdamW's, on matrices inside the layers only.
        beta1, beta2, eps: AdamW's.
        gradient_clip: largest norm of the gradient.
        precision: ``"auto"`` is bf16-mixed where the device does bf16 in hardware, else 32-true.
        recompute: what layers compute again in the backward pass instead of keeping it: ``"none"``, ``"full"``,
            ``"selective"`` (all but products, attention and experts), or k for every k-th layer whole; see
            :func:`toolkit.layers.recomputation.recompute_layers`. It changes memory and time, no value.
        seed: of the initialisation and of the order of the data.
        log_every: steps between two rows of metrics.
        evaluations: how often validation is run during training, evenly spaced, the end included.
        validation_block: tokens of one stretch of validation text, which windows tile, so that runs with other
            contexts are scored on the same tokens; None for ``context``.
        checkpoint_minutes: at most this much work is lost when a run is killed.

    Raises:
        ValueError: if a size is not positive, a share not within [0, 1], warmup and decay are longer than the run, or a
            choice is unknown.
    """

    steps: int
    context: int = 128
    batch_size: int = 8
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_share: float = 0.1
    warmup_steps: int | None = None
    decay_share: float = 0.2
    final_share: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    gradient_clip: float = 1.0
    precision: str = "auto"
    recompute: str | int = "none"
    seed: int = 0
    log_every: int = 20
    evaluations: int = 4
    validation_block: int | None = None
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        names = ("steps", "context", "batch_size", "learning_rate", "eps", "gradient_clip", "log_every")
        require_positive(**{name: getattr(self, name) for name in names})
        require_positive(evaluations=self.evaluations, checkpoint_minutes=self.checkpoint_minutes)
        block, right = self.validation_block, f"a multiple of context={self.context}, or None"
        require(block is None or (block > 0 and block % self.context == 0), "validation_block", block, right)
        for name in ("warmup_share", "decay_share", "final_share", "beta1", "beta2"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require_choice("schedule", self.schedule, SCHEDULES)
        require_choice("precision", self.precision, PRECISIONS)
        require_recompute(self.recompute)
        self._require_warmup()

    def _require_warmup(self) -> None:
        """Refuse a warmup that does not leave the decay its place."""
        if self.warmup_steps is None:
            shares = self.warmup_share + (self.decay_share if self.schedule == "wsd" else 0)
            require(shares <= 1, "warmup_share", self.warmup_share, "at most 1 - decay_share")
            return
        decay = self._decay_asked
        most = self.steps - decay
        right = f"between 0 and {most}, what a decay of {decay} leaves of {self.steps} steps, or None"
        require(0 <= self.warmup_steps <= most, "warmup_steps", self.warmup_steps, right)

    @property
    def warmup(self) -> int:
        """Steps that the learning rate rises for."""
        return round(self.warmup_share * self.steps) if self.warmup_steps is None else self.warmup_steps

    @property
    def decay(self) -> int:
        """Steps of ``"wsd"``'s decay; 0 for a cosine, which has no stable part to decay from."""
        return min(self._decay_asked, self.steps - self.warmup)  # two shares that round up would overlap

    @property
    def _decay_asked(self) -> int:
        return round(self.decay_share * self.steps) if self.schedule == "wsd" else 0

    @property
    def decay_start(self) -> int:
        """Steps before ``"wsd"``'s decay."""
        return self.steps - self.decay

    @property
    def until_decay(self) -> dict[str, Any]:
        """All that determines the steps before ``decay_start``: ``"wsd"`` runs that agree in it share them.

        Until the earlier of two such runs decays, both have the same weights: the learning rate rises to one peak in
        as many steps, and batches are addressed by step.
        """
        settings = {name: value for name, value in asdict(self).items() if name not in OF_THE_DECAY + OF_NO_STEP}
        return settings | {"warmup": self.warmup}

    @property
    def tokens_per_step(self) -> int:
        """Tokens predicted in one step, over all devices."""
        return self.batch_size * self.context
