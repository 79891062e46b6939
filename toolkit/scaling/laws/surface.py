"""The loss over parameters and tokens, L(N, D) = E + A / N^alpha + B / D^beta, and how a budget is best split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.checks import require, require_positive

Floats = npt.NDArray[np.float64]

PER_PARAMETER = 6.0
"""FLOPs of a parameter and a token, forward and backward, where no exact count is at hand (Kaplan et al. 2020)."""


@dataclass(frozen=True)
class Optimum:
    """What a budget is best spent on.

    Attributes:
        flops: the budget.
        params, tokens: with params * tokens * flops_per = flops.
        loss: nats.
    """

    flops: float
    params: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class LossSurface:
    """L(N, D) = E + A / N^alpha + B / D^beta, nats, of N parameters and D tokens.

    Source: Hoffmann et al. 2022 (arXiv 2203.15556), equation 2 and, for the optimum, equation 4.

    >>> surface = LossSurface(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
    >>> round(surface.optimum(1e20).loss, 4)
    2.5998
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, params: npt.ArrayLike, tokens: npt.ArrayLike) -> Floats:
        """Nats, of arrays that broadcast."""
        n, d = np.asarray(params, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        values: Floats = self.E + self.A * n**-self.alpha + self.B * d**-self.beta
        return values

    @property
    def exponent(self) -> float:
        """a of N* ~ C^a: beta / (alpha + beta); tokens grow by the rest."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, flops: float, flops_per: float = PER_PARAMETER) -> Optimum:
        """The parameters and tokens of the least loss for ``flops`` = flops_per * params * tokens.

        Raises:
            ValueError: if a number is not positive, or one of A, B, alpha and beta is not: there is no such point.
        """
        require_positive(flops=flops, flops_per=flops_per)
        require_positive(A=self.A, B=self.B, alpha=self.alpha, beta=self.beta)
        product, both = flops / flops_per, self.alpha + self.beta
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / both)
        params = ratio * product**self.exponent
        tokens = product / params
        return Optimum(flops, params, tokens, float(self.loss(params, tokens)))


def require_sound(name: str, values: Floats) -> None:
    """Refuse ``values`` (n,) that are not all positive and finite, naming the first that is not.

    >>> require_sound("loss", np.array([3.0, np.nan]))
    Traceback (most recent call last):
    ValueError: loss[1]=nan: it must be positive and finite
    """
    for at in np.flatnonzero(~(np.isfinite(values) & (values > 0)))[:1].tolist():
        require(False, f"{name}[{at}]", float(values[at]), "positive and finite")


def require_runs(
    params: Sequence[float], tokens: Sequence[float], loss: Sequence[float], irreducible: float | None = None
) -> tuple[Floats, ...]:
    """params, tokens and loss (runs,) as arrays, all positive and finite.

    Raises:
        ValueError: naming what is of another length, not positive or not finite, or that there are too few.
    """
    n, d, nats = arrays = tuple(np.asarray(values, dtype=np.float64) for values in (params, tokens, loss))
    for name, values in zip(("params", "tokens", "loss"), arrays, strict=True):
        require(values.ndim == 1 and len(values) == len(arrays[0]), f"{name}.shape", values.shape, "(runs,), as params")
        require_sound(name, values)
    _require_told(n, d, nats, constants=5 if irreducible is None else 4)
    lowest = float(nats.min())
    right = f"None, or above 0 and below the lowest loss, {lowest:.4g}"
    require(irreducible is None or 0 < irreducible < lowest, "irreducible", irreducible, right)
    return arrays


def _require_told(params: Floats, tokens: Floats, loss: Floats, constants: int) -> None:
    """Refuse runs that cannot tell a surface's constants: too few, or in a line."""
    require(len(params) >= constants, "params", f"{len(params)} runs", f"{constants} or more, the numbers to find")
    points = len(np.unique(np.stack([params, tokens]), axis=1).T)
    right = f"{constants} or more: repeats of one point tell its noise and nothing else"
    require(points >= constants, "params and tokens", f"{points} different points", right)
    for name, values, least in (("params", params, 3), ("tokens", tokens, 3), ("tokens / params", tokens / params, 2)):
        levels = len(np.unique(np.round(np.log(values), 9)))
        require(levels >= least, name, f"{levels} different values", f"{least} or more to tell the terms apart")
    require(bool(np.ptp(loss) > 0), "loss", float(loss[0]), "not the same in every run")
