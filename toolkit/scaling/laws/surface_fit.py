"""Loss surfaces from runs: variable projection, or Hoffmann's robust fit of log losses; and how sure they are.

Both are of L(N, D) = E + A / N^alpha + B / D^beta (:class:`toolkit.scaling.laws.surface.LossSurface`).

*Variable projection*: for given exponents the other three are a linear least-squares problem with no number below 0, so
that a search over the two exponents finds all five. The squares are of losses in nats.

*Huber*: Hoffmann et al.'s approach 3. With a = ln A, b = ln B, e = ln E, the sum over runs of

    Huber_delta( LSE(a - alpha ln N, b - beta ln D, e) - ln L ),   LSE(x) = ln sum exp x.

Source: Golub and Pereyra 1973 for the projection; Lawson and Hanson 1974 for non-negative least squares; Hoffmann et
al. 2022 (arXiv 2203.15556), section 3.3; Besiroglu et al. 2024 (arXiv 2404.10102), who show where a mean in the place
of the sum stops too early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from scipy import optimize

from toolkit.checks import require, require_choice, require_positive
from toolkit.scaling.laws.cautions import NOTHING, of_exponents, of_terms
from toolkit.scaling.laws.descent import descend
from toolkit.scaling.laws.resampling import Strings, resampled
from toolkit.scaling.laws.surface import PER_PARAMETER, Floats, LossSurface, require_runs
from toolkit.scaling.laws.surface_descent import SurfaceObjective, surface_of

METHODS = ("projection", "huber")

DELTA = 1e-3
"""Residuals of log losses above this count linearly (Hoffmann et al. 2022)."""

GRID = np.linspace(0.05, 1.5, 30)
"""Exponents that the projection tries first, alpha and beta alike."""

STARTS = tuple(
    np.linspace(low, high, count) for low, high, count in ((0, 25, 6), (0, 25, 6), (-1, 1, 5), (0, 2, 5), (0, 2, 5))
)
"""Where the robust fit begins: a, b, e, alpha, beta of Hoffmann et al.'s grid of 4,500."""


@dataclass(frozen=True, eq=False)
class FittedSurface(LossSurface):
    """A surface and the runs it was fitted to.

    Attributes:
        params, tokens, losses: of the runs, (runs,).
        group: labels of the runs, (runs,); those of one group share their errors.
        method: ``"projection"`` or ``"huber"``.
        objective: what was minimised: the sum of squares, or of Huber losses.
        irreducible: E where it was given.
        delta: of the Huber loss.
    """

    params: Floats = field(repr=False)
    tokens: Floats = field(repr=False)
    losses: Floats = field(repr=False)
    group: Strings = field(repr=False)
    method: str
    objective: float
    irreducible: float | None
    delta: float

    def bootstrap(self, resamples: int = 4000, seed: int = 0) -> SurfaceBootstrap:
        """The same fit of as many groups drawn with replacement, again and again, each begun at this one.

        Raises:
            ValueError: if ``resamples`` is below 2.
        """
        require(resamples >= 2, "resamples", resamples, "2 or more")
        weights = resampled(self.group, resamples, np.random.default_rng(seed))
        start = np.maximum([self.A, self.B, self.E], 1e-12)  # in logs, where nothing is 0
        theta = np.tile([*np.log(start), self.alpha, self.beta], (resamples, 1))
        runs_in_logs = np.log(self.params), np.log(self.tokens), np.log(self.losses)
        objective = SurfaceObjective(*runs_in_logs, self.residual_delta)
        found = descend(_fixed(theta, self.irreducible), objective, weights, _free(self.irreducible))[0]
        return SurfaceBootstrap(tuple(surface_of(row) for row in found))

    @property
    def cautions(self) -> tuple[str, ...]:
        """What the numbers themselves warn of, a sentence each: a term at 0, an exponent of the wrong sign or size."""
        terms = {"A": self.A * self.params**-self.alpha, "B": self.B * self.tokens**-self.beta}
        if self.irreducible is None:
            terms["E"] = np.full(len(self.losses), self.E)
        shares = {name: float((term / self.losses).max()) for name, term in terms.items()}
        largest = float((GRID if self.method == "projection" else STARTS[3])[-1])
        exponents = {"alpha": self.alpha, "beta": self.beta}
        return (*of_terms(shares, "E"), *of_exponents(exponents, dict.fromkeys(exponents, (NOTHING, largest))))

    @property
    def residual_delta(self) -> float | None:
        """Of the Huber loss of log losses; None for squares of losses in nats."""
        return self.delta if self.method == "huber" else None


@dataclass(frozen=True)
class SurfaceBootstrap:
    """Surfaces of resampled runs."""

    surfaces: tuple[LossSurface, ...]

    def values(self, name: str) -> Floats:
        """One number of every surface: ``"E"``, ``"A"``, ``"B"``, ``"alpha"``, ``"beta"`` or ``"exponent"``."""
        return np.array([getattr(surface, name) for surface in self.surfaces])

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """The percentiles that leave (1 - level) / 2 on either side.

        Raises:
            ValueError: if ``level`` is not between 0 and 1.
        """
        return _percentiles(self.values(name), level)

    def optimum_interval(
        self, flops: float, name: str, level: float = 0.95, flops_per: float = PER_PARAMETER
    ) -> tuple[float, float]:
        """The same of what ``flops`` are best spent on: of ``"params"``, ``"tokens"`` or ``"loss"``.

        Raises:
            ValueError: for another name, as :meth:`interval` and :meth:`LossSurface.optimum`, or if a resample's
                surface has no optimum, since a coefficient or an exponent of it is not positive.
        """
        require_choice("name", name, ("params", "tokens", "loss"))
        bad = sum(min(each.A, each.B, each.alpha, each.beta) <= 0 for each in self.surfaces)
        right = "such that each has an optimum: the runs tell too little of how the loss falls"
        require(bad == 0, "surfaces", f"{bad} of {len(self.surfaces)} without one", right)
        return _percentiles(np.array([getattr(each.optimum(flops, flops_per), name) for each in self.surfaces]), level)


def _percentiles(values: Floats, level: float) -> tuple[float, float]:
    require(0 < level < 1, "level", level, "between 0 and 1")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def fit_loss_surface(
    params: Sequence[float],
    tokens: Sequence[float],
    loss: Sequence[float],
    method: str = "projection",
    *,
    irreducible: float | None = None,
    delta: float = DELTA,
    group: Sequence[str] | None = None,
) -> FittedSurface:
    """Fit a loss surface to runs.

    How well such a surface predicts runs that were held out, :func:`toolkit.scaling.laws.cross_validate` and
    :func:`toolkit.scaling.laws.rollout` tell by the same law as a form, :class:`toolkit.scaling.laws.Chinchilla`. With
    ``method="huber"`` both minimise one sum; ``"projection"`` is of losses and the form's ``"squares"`` of log losses.

    Args:
        params, tokens, loss: of each run, (runs,); loss in nats.
        method: ``"projection"`` or ``"huber"``, see the module.
        irreducible: E, where it is not to be found.
        delta: of the Huber loss.
        group: labels, (runs,). Runs of one group, such as the seeds of a cell or the branches of a trunk, share their
            errors and are drawn together by the bootstrap; None where each run is by itself.

    Raises:
        ValueError: if the runs are too few, of different lengths or not positive, or a setting is out of its range.
    """
    require_choice("method", method, METHODS)
    require_positive(delta=delta)
    n, d, nats = require_runs(params, tokens, loss, irreducible)
    labels = np.arange(len(n)).astype(np.str_) if group is None else np.asarray(group, dtype=np.str_)
    require(labels.shape == n.shape, "group.shape", labels.shape, "(runs,), as params")
    if method == "huber":
        surface, objective = _fit_huber(n, d, nats, irreducible, delta)
    else:
        surface, objective = _fit_projection(n, d, nats, irreducible)
    numbers = surface.E, surface.A, surface.B, surface.alpha, surface.beta
    return FittedSurface(*numbers, n, d, nats, labels, method, objective, irreducible, delta)


def _fit_projection(n: Floats, d: Floats, nats: Floats, fixed: float | None) -> tuple[LossSurface, float]:
    """The best exponents of a grid, then from there; all five at once where none stands at its bound."""
    scored = [(_linear(alpha, beta, n, d, nats, fixed)[1], alpha, beta) for alpha, beta in product(GRID, GRID)]
    _, *start = min(scored)

    def squares(exponents: Floats) -> float:
        alpha, beta = exponents.tolist()
        return _linear(alpha, beta, n, d, nats, fixed)[1] if min(alpha, beta) > 0 else np.inf

    options = {"xatol": 1e-7, "fatol": 1e-16, "maxiter": 400}
    alpha, beta = optimize.minimize(squares, start, method="Nelder-Mead", options=options).x
    (e, a, b), objective = _linear(alpha, beta, n, d, nats, fixed)
    if min(e, a, b) > 0:
        theta = np.array([[np.log(a), np.log(b), np.log(e), alpha, beta]])
        squares_of = SurfaceObjective(np.log(n), np.log(d), np.log(nats), None)
        found, half = descend(theta, squares_of, np.ones((1, len(n))), _free(fixed))
        if 2 * half[0] <= objective:
            return surface_of(found[0]), float(2 * half[0])
    return LossSurface(*(float(value) for value in (e, a, b, alpha, beta))), objective


def _linear(alpha: float, beta: float, n: Floats, d: Floats, nats: Floats, fixed: float | None) -> tuple[Floats, float]:
    """(E, A, B), none below 0, of the least squares for these exponents, and the squares."""
    columns = np.stack([np.ones_like(nats), n**-alpha, d**-beta], axis=1)
    scale = np.maximum(columns.max(axis=0), np.finfo(float).tiny)  # a large exponent leaves a column of zeros
    if fixed is None:
        found, norm = optimize.nnls(columns / scale, nats)
        return found / scale, float(norm**2)
    found, norm = optimize.nnls(columns[:, 1:] / scale[1:], nats - fixed)
    return np.array([fixed, *(found / scale[1:])]), float(norm**2)


def _fit_huber(n: Floats, d: Floats, nats: Floats, fixed: float | None, delta: float) -> tuple[LossSurface, float]:
    """The best of the grid's starts: all go a few steps, the likeliest some more, the likeliest of those to the end."""
    objective, ones = SurfaceObjective(np.log(n), np.log(d), np.log(nats), delta), np.ones((1, len(n)))
    starts = _fixed(np.array(list(product(*STARTS))), fixed)
    theta, value = descend(starts, objective, ones, _free(fixed), steps=6)
    for kept, steps in ((512, 20), (64, 600)):
        theta, value = descend(theta[np.argsort(value)[:kept]], objective, ones, _free(fixed), steps)
    best = int(np.argmin(value))
    return surface_of(theta[best]), float(value[best])


def _free(fixed: float | None) -> list[int]:
    """Which of ln A, ln B, ln E, alpha, beta are to be found."""
    return [0, 1, 2, 3, 4] if fixed is None else [0, 1, 3, 4]


def _fixed(theta: Floats, fixed: float | None) -> Floats:
    """theta (problems, 5) with E as given."""
    if fixed is not None:
        theta[:, 2] = np.log(fixed)
    return theta
