"""How well a form predicts runs that it was not fitted to: held-out groups, and larger runs than it has seen.

Errors are root mean squares of ln measured - ln predicted, which for small errors are relative errors of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.checks import require, require_choice
from toolkit.scaling.laws.form_fit import fit_form
from toolkit.scaling.laws.forms import Form
from toolkit.scaling.laws.runs import Runs
from toolkit.scaling.laws.surface import Floats

ORDERS = ("flops", "active", "total", "tokens")

LEAST_SHARE = 0.1
"""Of the runs, that a selection's rollout is scored on."""


@dataclass(frozen=True)
class Score:
    """How far predictions of held-out runs are off.

    Attributes:
        error: over all runs, each held out once.
        standard_error: of it, from the spread between folds. The folds share most of their runs, so it is a guide, no
            test (Bengio and Grandvalet 2004).
        folds: the error of each.
    """

    error: float
    standard_error: float
    folds: tuple[float, ...]


@dataclass(frozen=True)
class RolloutCut:
    """A form fitted to all runs up to a size and scored on the larger ones.

    Attributes:
        cut: the largest value that was fitted, of what the runs are ordered by.
        fitted, scored: runs.
        error: of the scored runs; nan where there is no fit.
        bias: the mean of ln measured - ln predicted: below 0 where the larger runs are better than predicted.
        reason: why there is no fit; empty otherwise.
    """

    cut: float
    fitted: int
    scored: int
    error: float
    bias: float
    reason: str = ""


def rollout(
    form: Form,
    runs: Runs,
    order_by: str = "flops",
    *,
    cuts: Sequence[float] | None = None,
    method: str = "squares",
    irreducible: float | None = None,
) -> tuple[RolloutCut, ...]:
    """Fit the small, score on the large, at every cut.

    Args:
        form: of :mod:`toolkit.scaling.laws.forms`.
        runs: of all sizes.
        order_by: the column that tells small from large, of :data:`ORDERS`.
        cuts: values of it; None: each that runs have but the largest.
        method, irreducible: of :func:`toolkit.scaling.laws.form_fit.fit_form`.

    Raises:
        ValueError: for another ``order_by``, or a cut with no run at or below it, or none above. A cut whose small runs
            cannot be fitted is returned, with the reason.
    """
    require_choice("order_by", order_by, ORDERS)
    sizes: Floats = runs.budgets if order_by == "flops" else getattr(runs, order_by)
    steps = np.unique(sizes)[:-1].tolist() if cuts is None else list(cuts)
    require(len(steps) > 0, order_by, "one value", "two or more, to tell small from large")
    scored = []
    for cut in steps:
        small = sizes <= cut * (1 + 1e-9)
        require(0 < small.sum() < len(runs), "cuts", cut, f"from {sizes.min():g} to below {sizes.max():g}")
        scored.append(_scored(form, runs, small, cut, method, irreducible))
    return tuple(scored)


def _scored(
    form: Form, runs: Runs, small: npt.NDArray[np.bool_], cut: float, method: str, irreducible: float | None
) -> RolloutCut:
    fitted, held = int(small.sum()), int((~small).sum())
    try:
        errors = _held_out(form, runs, ~small, method, irreducible)
    except ValueError as refusal:
        return RolloutCut(cut, fitted, held, math.nan, math.nan, str(refusal))
    return RolloutCut(cut, fitted, held, _rms(errors), float(errors.mean()))


def cross_validate(
    form: Form,
    runs: Runs,
    folds: int = 5,
    seed: int = 0,
    *,
    method: str = "squares",
    irreducible: float | None = None,
) -> Score:
    """Hold out one fold of groups after another, fit the rest, and score on the fold.

    The groups of each family are dealt out evenly, in random order.

    Raises:
        ValueError: if there are fewer than two folds or fewer groups than folds, or the form cannot be fitted without
            one of them.
    """
    fold = _folds(runs, folds, np.random.default_rng(seed))
    errors = [_held_out(form, runs, fold == at, method, irreducible) for at in range(folds)]
    error = _rms(np.concatenate(errors))
    squares = np.array([np.mean(values**2) for values in errors])
    spread = float(squares.std(ddof=1)) / math.sqrt(folds)
    return Score(error, spread / (2 * error) if error > 0 else 0.0, tuple(_rms(values) for values in errors))


def _folds(runs: Runs, folds: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """The fold of each run, (runs,)."""
    groups = list(dict.fromkeys(zip(runs.family.tolist(), runs.group.tolist(), strict=True)))
    require(2 <= folds <= len(groups), "folds", folds, f"from 2 to the number of groups, {len(groups)}")
    dealt: dict[tuple[str, str], int] = {}
    for family in runs.families:  # each goes on where the one before ended, or the first folds would be the largest
        mine = [group for group in groups if group[0] == family]
        for at in generator.permutation(len(mine)):
            dealt[mine[at]] = len(dealt) % folds
    return np.array([dealt[key] for key in zip(runs.family.tolist(), runs.group.tolist(), strict=True)])


def _held_out(form: Form, runs: Runs, held: npt.NDArray[np.bool_], method: str, irreducible: float | None) -> Floats:
    """ln measured - ln predicted of the runs held out of a fit."""
    fitted = fit_form(form, runs.where(~held), method=method, irreducible=irreducible)
    new = runs.where(held)
    errors: Floats = np.log(new.loss) - np.log(fitted.predict(new))
    return errors


def _rms(errors: Floats) -> float:
    return float(np.sqrt(np.mean(errors**2)))


@dataclass(frozen=True)
class Selection:
    """One form, judged on one set of runs.

    Attributes:
        form: as it was given.
        parameters: that were found.
        in_sample: error of the runs it was fitted to.
        cross_validated: see :func:`cross_validate`.
        rollout: error of the runs at the largest budget, predicted from all others; where that is fewer than a tenth
            of the runs, as where no two have one budget, of those above a third of the largest.
        reason: what could not be done, and why; the numbers of that are None.
        scored: runs that ``rollout`` is of.
    """

    form: Form
    parameters: int | None
    in_sample: float | None
    cross_validated: Score | None
    rollout: float | None
    reason: str
    scored: int | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """For a row of a table, errors in per cent of the loss."""
        score, runs = self.cross_validated, "" if self.scored is None else f" of {self.scored} runs"
        return (
            self.form.title,
            "" if self.parameters is None else str(self.parameters),
            _percent(self.in_sample),
            "" if score is None else f"{_percent(score.error)} (± {_percent(score.standard_error)})",
            _percent(self.rollout) + runs,
            self.reason.replace("|", "\\|"),
        )


def _percent(error: float | None) -> str:
    return "" if error is None else f"{100 * error:.3g}%"


@dataclass(frozen=True)
class SelectionTable:
    """Forms by their cross-validated error, the best first; those without one at the end.

    Attributes:
        rows: one for each form.
    """

    rows: tuple[Selection, ...]

    columns = "form | constants | error in sample | cross-validated | largest budgets, from the others | not done"
    """The first line of the table, for :func:`toolkit.scaling.document.markdown_table`."""

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """The body of the table; a cross-validated error that ties with the least says so."""
        body = [list(row.cells) for row in self.rows]
        for cells, row in zip(body[1:], self.rows[1:], strict=True):
            cells[3] += ", tied" if row in self.tied else ""
        return [tuple(cells) for cells in body]

    @property
    def tied(self) -> tuple[Selection, ...]:
        """The forms whose squared error is within one standard error of the least, the best one first.

        The standard error is of the difference, fold by fold: all forms are scored on the same folds, whose own spread
        is no matter. The one of fewest constants among them is a sound choice too (Breiman et al. 1984, Classification
        and Regression Trees, section 3.4.3, the one-standard-error rule).
        """
        best = self.rows[0].cross_validated
        return tuple(row for row in self.rows if best and row.cross_validated and _ties(row.cross_validated, best))

    @property
    def best(self) -> Form:
        """The form that predicts best.

        Raises:
            ValueError: if none could be cross-validated.
        """
        reasons = "; ".join(f"{row.form.title}: {row.reason}" for row in self.rows)
        require(self.rows[0].cross_validated is not None, "forms", reasons, "such that one can be cross-validated")
        return self.rows[0].form


def _ties(score: Score, best: Score) -> bool:
    """Whether ``score`` is no further above ``best`` than the spread of their differences between folds explains."""
    differences = np.square(score.folds) - np.square(best.folds)
    if len(differences) < 2:
        return score.error <= best.error
    return bool(differences.mean() <= differences.std(ddof=1) / math.sqrt(len(differences)))


def select(
    forms: Sequence[Form], runs: Runs, *, folds: int = 5, seed: int = 0, method: str = "squares"
) -> SelectionTable:
    """Fit, cross-validate and roll out every form. One that cannot be stays in the table, with the reason.

    Raises:
        ValueError: if there are no forms, or ``folds`` or ``method`` is out of its range.
    """
    require(len(forms) > 0, "forms", len(forms), "one or more")
    _folds(runs, folds, np.random.default_rng(seed))
    rows = [_selection(form, runs, folds, seed, method) for form in forms]
    return SelectionTable(tuple(sorted(rows, key=_rank)))


def _rank(row: Selection) -> float:
    return math.inf if row.cross_validated is None else row.cross_validated.error


def _selection(form: Form, runs: Runs, folds: int, seed: int, method: str) -> Selection:
    try:
        fitted = fit_form(form, runs, method=method)
    except ValueError as refusal:
        return Selection(form, None, None, None, None, str(refusal))
    reasons, score, larger = [], None, None
    try:
        score = cross_validate(form, runs, folds, seed, method=method)
    except ValueError as refusal:
        reasons.append(f"cross-validation: {refusal}")
    scored = None
    try:
        (last,) = rollout(form, runs, cuts=[_last_cut(runs)], method=method)
        larger, scored = (None, None) if last.reason else (last.error, last.scored)
        reasons += [f"largest budgets: {last.reason}"] if last.reason else []
    except ValueError as refusal:
        reasons.append(f"largest budgets: {refusal}")
    in_sample = _rms(fitted.residuals)
    return Selection(form, fitted.free_parameters, in_sample, score, larger, "; ".join(reasons), scored)


def _last_cut(runs: Runs) -> float:
    """The budget below the largest; a third of the largest where fewer than a tenth of the runs are at it."""
    largest = float(runs.budgets.max())
    if np.mean(runs.budgets == largest) < LEAST_SHARE:
        return largest / 3
    below = runs.budgets[runs.budgets < largest]
    require(len(below) > 0, "flops", f"one budget, {largest:g}", "two or more, to tell small from large")
    return float(below.max())
