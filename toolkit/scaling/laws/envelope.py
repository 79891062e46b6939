"""The envelope of training curves: the least loss that any model has reached for each amount of compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.checks import require, require_positive
from toolkit.scaling.laws.surface import PER_PARAMETER, Floats, require_sound


@dataclass(frozen=True, eq=False)
class TrainingCurve:
    """The loss along one run.

    Attributes:
        params: N.
        tokens: seen so far, ascending, (points,); any sequence is made an array.
        loss: (points,), likewise.
        flops_per_token: None is 6 N.

    Raises:
        ValueError: if there are fewer than two points, a number is not positive and finite, the columns are not of one
            length, or the tokens do not ascend.
    """

    params: float
    tokens: Floats
    loss: Floats
    flops_per_token: float | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "loss"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, values)
            same = values.ndim == 1 and values.shape == self.tokens.shape
            require(same, f"{name}.shape", values.shape, "(points,), as tokens")
            require_sound(name, values)
        require_positive(params=self.params, flops_per_token=self._per_token)
        require(len(self.tokens) >= 2, "tokens", len(self.tokens), "two points or more")
        for at in np.flatnonzero(np.diff(self.tokens) <= 0)[:1].tolist():
            right = f"above tokens[{at}]={self.tokens[at]:g}"
            require(False, f"tokens[{at + 1}]", float(self.tokens[at + 1]), right)

    @property
    def flops(self) -> Floats:
        """Spent so far, (points,)."""
        values: Floats = self.tokens * self._per_token
        return values

    @property
    def _per_token(self) -> float:
        return PER_PARAMETER * self.params if self.flops_per_token is None else self.flops_per_token

    def smoothed(self, window: float) -> Floats:
        """At each point the mean loss of the points whose tokens are within ``window`` of its own, as a share.

        A window that grows with training takes less where the loss falls fast (Porian et al. 2024, arXiv 2406.19146).
        """
        first = np.searchsorted(self.tokens, self.tokens * (1 - window), side="left")
        last = np.searchsorted(self.tokens, self.tokens * (1 + window), side="right")
        sums = np.concatenate([[0.0], np.cumsum(self.loss)])
        means: Floats = (sums[last] - sums[first]) / (last - first)
        return means

    def at(self, flops: Floats, window: float) -> Floats:
        """The smoothed loss at ``flops`` (bins,), interpolated log-log; inf outside the points."""
        logs = np.interp(np.log(flops), np.log(self.flops), np.log(self.smoothed(window)), left=np.inf, right=np.inf)
        return np.exp(logs)


@dataclass(frozen=True, eq=False)
class Envelope:
    """What is best for each budget, all (bins,).

    Attributes:
        flops: ascending.
        params, tokens, loss: of the best model there.
        enclosed: whether the next smaller and the next larger size are measured at this budget too; elsewhere the best
            may be a size that is not.
    """

    flops: Floats
    params: Floats
    tokens: Floats
    loss: Floats
    enclosed: npt.NDArray[np.bool_]


def compute_envelope(curves: Sequence[TrainingCurve], *, bins: int = 1500, window: float = 0.05) -> Envelope:
    """The least smoothed loss for each of ``bins`` budgets, evenly spaced in logarithms over what was spent.

    Source: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.1.

    Raises:
        ValueError: if the curves are of fewer than three sizes, ``bins`` is below 2, or ``window`` is not from 0 to 1.
    """
    require(bins >= 2, "bins", bins, "2 or more")
    require(0 <= window < 1, "window", window, "at least 0 and below 1")
    sizes = np.unique([curve.params for curve in curves])
    require(len(sizes) >= 3, "curves", f"{len(sizes)} sizes", "of three sizes or more")
    start, end = min(curve.flops[0] for curve in curves), max(curve.flops[-1] for curve in curves)
    flops = np.geomspace(start, end, bins)
    losses = np.full((len(sizes), bins), np.inf)  # the best run of each size
    per_token = np.zeros((len(sizes), bins))
    for curve in curves:
        row, mine = int(np.searchsorted(sizes, curve.params)), curve.at(flops, window)
        per_token[row] = np.where(mine < losses[row], curve._per_token, per_token[row])
        losses[row] = np.minimum(losses[row], mine)
    best, column = losses.argmin(axis=0), np.arange(bins)
    reached = losses[best, column] < np.inf
    measured = np.isfinite(np.pad(losses, ((1, 1), (0, 0)), constant_values=np.inf))
    enclosed = measured[best, column] & measured[best + 2, column]
    tokens = flops / np.where(reached, per_token[best, column], 1.0)
    kept = (flops, sizes[best], tokens, losses[best, column], enclosed)
    return Envelope(*(values[reached] for values in kept))
