"""Any form fitted to runs of many families, by squares or Huber losses of log losses; and how sure it is.

All forms share one engine: from every guess of the exponents, with the coefficients that are best for it, some damped
steps; the likeliest go to the end (:func:`toolkit.scaling.laws.descent.descend`). Log losses make errors relative, so
that a small model's large loss does not rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from toolkit.checks import require, require_choice, require_positive
from toolkit.scaling.laws.cautions import of_exponents, of_terms
from toolkit.scaling.laws.descent import descend, expansion
from toolkit.scaling.laws.forms import Form
from toolkit.scaling.laws.forms.form import SATURATION, Terms
from toolkit.scaling.laws.resampling import resampled_within
from toolkit.scaling.laws.runs import Runs
from toolkit.scaling.laws.surface import Floats
from toolkit.scaling.laws.surface_fit import DELTA

METHODS = ("squares", "huber")

FINALISTS = 12
"""Starts that are followed to the end."""


@dataclass(frozen=True)
class FormObjective:
    """The sum over runs of losses of residuals ln L(theta) - ln L.

    Attributes:
        terms: of the form, over the runs.
        log_loss: (runs,).
        delta: of the Huber loss; None: half the square.
    """

    terms: Terms
    log_loss: Floats
    delta: float | None

    def expand(self, theta: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """As :meth:`toolkit.scaling.laws.descent.Objective.expand`."""
        predicted, slopes = self.terms.expand(theta)
        value, gradient, squares = expansion(predicted - self.log_loss, slopes, weights, self.delta)
        return value, gradient, squares


@dataclass(frozen=True, eq=False)
class FittedForm:
    """A form, its constants and the runs they were fitted to.

    Attributes:
        form: bound to the families of the runs.
        runs: it was fitted to.
        vector: theta, (k,), see :mod:`toolkit.scaling.laws.forms.form`.
        method: ``"squares"`` or ``"huber"``.
        objective: what was minimised: half the sum of squares, or of Huber losses, of :attr:`residuals`.
        irreducible: the irreducible loss where it was given.
        delta: of the Huber loss.
    """

    form: Form
    runs: Runs = field(repr=False)
    vector: Floats = field(repr=False)
    method: str
    objective: float
    irreducible: float | None
    delta: float

    @property
    def theta(self) -> dict[str, float]:
        """The constants by their names in the paper."""
        return dict(zip(self.form.names, self.form.constants(self.vector).tolist(), strict=True))

    @property
    def free_parameters(self) -> int:
        """How many constants were fitted."""
        return len(_free(self.form, self.irreducible))

    @property
    def residuals(self) -> Floats:
        """ln measured - ln predicted, (runs,)."""
        return np.log(self.runs.loss) - np.log(self.predict(self.runs))

    @property
    def cautions(self) -> tuple[str, ...]:
        """What the constants themselves warn of, a sentence each: a term at 0, an exponent of the wrong sign or size.

        Constants whose fits begin at one value alone may have any.
        """
        shares = self.form.shares(self.vector, self.runs)
        if self.irreducible is not None:
            shares.pop(str(self.form.irreducible))
        guesses = {name: self.form.guesses.get(self.form.stem(name), ()) for name in self.form.names}
        ranges = {
            name: (min(values), max(values))
            for name, values in guesses.items()
            if len(values) > 1 and name not in SATURATION
        }
        exponents = {name: self.theta[name] for name in ranges}
        return (*of_terms(shares, self.form.irreducible), *of_exponents(exponents, ranges))

    def predict(self, runs: Runs) -> Floats:
        """The loss of each of ``runs``, (runs,).

        Raises:
            ValueError: if a run is of a family that the form has constants of its own for, and was not fitted.
        """
        losses: Floats = np.exp(self.form.arrays(runs).log_loss(self.vector[None]))[0]
        return losses

    def bootstrap(self, resamples: int = 1000, seed: int = 0) -> FormBootstrap:
        """The same fit of groups drawn with replacement, again and again, each begun at this one.

        Within a family as many groups are drawn as it has, so that none vanishes; the runs of a group come together.

        Raises:
            ValueError: if ``resamples`` is below 2.
        """
        require(resamples >= 2, "resamples", resamples, "2 or more")
        weights = resampled_within(self.runs.family, self.runs.group, resamples, np.random.default_rng(seed))
        objective = _objective(self.form, self.runs, self.method, self.delta)
        start, free = np.tile(self.vector, (resamples, 1)), _free(self.form, self.irreducible)
        return FormBootstrap(self, descend(start, objective, weights, free)[0], seed)


@dataclass(frozen=True, eq=False)
class FormBootstrap:
    """Fits of resampled groups.

    Attributes:
        fitted: to the runs as they are.
        vectors: theta of each resample, (resamples, k).
        seed: of the resamples, and of the noise that :meth:`interval` adds.
    """

    fitted: FittedForm
    vectors: Floats = field(repr=False)
    seed: int

    def values(self, name: str) -> Floats:
        """One constant of every resample, (resamples,).

        Raises:
            ValueError: if the form has no such constant.
        """
        require_choice("name", name, self.fitted.form.names)
        values: Floats = self.fitted.form.constants(self.vectors)[:, self.fitted.form.names.index(name)]
        return values

    def predict(self, runs: Runs) -> Floats:
        """The loss of ``runs`` by every resample, (resamples, runs)."""
        losses: Floats = np.exp(self.fitted.form.arrays(runs).log_loss(self.vectors))
        return losses

    def interval(self, runs: Runs, level: float = 0.95, noise: bool = True) -> tuple[Floats, Floats]:
        """Where the losses of ``runs`` lie, low and high, each (runs,).

        With ``noise`` the *prediction* interval, of a run that is yet to be made: every resample's prediction times
        the error of a run drawn at random. The errors of n runs are drawn up by sqrt(n / (n - k)), since k constants
        were fitted to them. Without it the *confidence* interval of the mean loss of such runs.

        As bootstraps do, both fall short where runs are few: nine in ten becomes 89% for 60 runs and 5 constants, 85%
        for 12 and 4. Neither knows that the form itself may be wrong, see :mod:`toolkit.scaling.laws.validation`.

        Raises:
            ValueError: if ``level`` is not between 0 and 1, or noise is asked for of no more runs than constants.
        """
        require(0 < level < 1, "level", level, "between 0 and 1")
        losses = self.predict(runs)
        if noise:
            losses = losses * np.exp(self._errors(losses.shape))
        low, high = np.quantile(losses, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    def _errors(self, shape: tuple[int, ...]) -> Floats:
        """Residuals drawn at random."""
        many, fitted = len(self.fitted.runs), self.fitted.free_parameters
        require(many > fitted, "noise", f"True, of {many} runs", f"False where no more than {fitted} runs were fitted")
        drawn = np.random.default_rng((self.seed, 1)).choice(self.fitted.residuals, size=shape)
        return np.asarray(drawn * np.sqrt(many / (many - fitted)), dtype=np.float64)


def fit_form(
    form: Form,
    runs: Runs,
    *,
    method: str = "squares",
    irreducible: float | None = None,
    delta: float = DELTA,
) -> FittedForm:
    """Fit a form to runs.

    Args:
        form: of :mod:`toolkit.scaling.laws.forms`.
        runs: of all families that it is to describe.
        method: ``"squares"`` or ``"huber"``, of log losses.
        irreducible: the irreducible loss, where it is not to be found.
        delta: of the Huber loss.

    Raises:
        ValueError: if there are fewer runs than constants to find, or as few that differ in more than their loss, a
            column that the form explains varies too little, or size only as tokens do, all losses are the same, a
            setting is out of its range, or the form has no irreducible loss to be given.
    """
    require_choice("method", method, METHODS)
    require_positive(delta=delta)
    form = form.bound(runs)
    _require_irreducible(form, runs, irreducible)
    _require_enough(form, runs, _free(form, irreducible))
    objective, free = _objective(form, runs, method, delta), _free(form, irreducible)
    ones = np.ones((1, len(runs)))
    theta, value = descend(form.starts(runs, irreducible), objective, ones, free, steps=30)
    theta, value = descend(theta[np.argsort(value)[:FINALISTS]], objective, ones, free, steps=2000)
    best = int(np.nanargmin(value))
    return FittedForm(form, runs, theta[best], method, float(value[best]), irreducible, delta)


def _objective(form: Form, runs: Runs, method: str, delta: float) -> FormObjective:
    return FormObjective(form.arrays(runs), np.log(runs.loss), delta if method == "huber" else None)


def _free(form: Form, irreducible: float | None) -> list[int]:
    """Which of theta are to be found."""
    return [at for at, name in enumerate(form.names) if irreducible is None or name != form.irreducible]


def _require_irreducible(form: Form, runs: Runs, irreducible: float | None) -> None:
    if irreducible is None:
        return
    require(form.irreducible is not None, "irreducible", irreducible, f"None: {form.title} has no irreducible loss")
    lowest = float(runs.loss.min())
    require(0 < irreducible < lowest, "irreducible", irreducible, f"above 0 and below the lowest loss, {lowest:.4g}")


def _require_enough(form: Form, runs: Runs, free: list[int]) -> None:
    """Refuse runs that cannot tell the form's constants."""
    right = f"{len(free)} or more, the constants of {form.title} that are to be found"
    require(len(runs) >= len(free), "runs", len(runs), right)
    require(_points(runs) >= len(free), "runs", f"{_points(runs)} different ones", right)
    require(bool(np.ptp(runs.loss) > 0), "loss", float(runs.loss[0]), "not the same in every run")
    _require_levels(form, form.levels, runs, "")
    for family in form.families:
        mine, own = runs.where(runs.family == family), sum(name.endswith(f"[{family}]") for name in form.names)
        _require_levels(form, form.family_levels, mine, f" of {family}")
        right = f"{own} or more, the constants that {form.title} has of {family} alone"
        require(_points(mine) >= own, f"runs of {family}", f"{_points(mine)} different ones", right)


def _points(runs: Runs) -> int:
    """Runs that differ in more than their loss."""
    columns = (runs.active, runs.tokens, runs.total, runs.experts, runs.granularity)
    return len(np.unique(np.stack(columns, axis=1), axis=0))


def _require_levels(form: Form, levels: Mapping[str, int], runs: Runs, of: str) -> None:
    for column, least in levels.items():
        values = _different(getattr(runs, column))
        require(values >= least, column + of, f"{values} different values", f"{least} or more for {form.title}")
    for size in {"active", "total"} & set(levels) if "tokens" in levels else ():
        values = _different(runs.tokens / getattr(runs, size))
        right = f"2 or more for {form.title}, whose terms in the two cannot be told apart where one follows the other"
        require(values >= 2, f"tokens / {size}{of}", f"{values} different values", right)


def _different(values: Floats) -> int:
    """How many values there are, up to rounding."""
    return len(np.unique(np.round(np.log1p(values), 9)))
