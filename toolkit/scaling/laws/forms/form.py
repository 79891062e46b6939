"""A parametric form of the loss over runs: a sum of power laws, each of which is linear in theta once logs are taken.

    ln L = LSE_j (x_j + ln Ehat z_j) . theta,        LSE(u) = ln sum_j exp u_j

with x_j and z_j known of every run, and Clark et al.'s saturating number of experts

    1 / Ehat = 1 / (E - 1 + kappa) + 1 / E_max,      1 / kappa = 1 / E_start - 1 / E_max

(2022, arXiv 2202.01169) where a form uses it. theta holds the logarithms of constants that must be positive.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

import numpy as np
from scipy import optimize

from toolkit.checks import require
from toolkit.scaling.laws.runs import Runs
from toolkit.scaling.laws.surface import Floats

SATURATION = ("E_start", "E_max")
"""Constants of Ehat; in theta they stand last, as ln kappa and ln E_max."""

Columns = Mapping[str, Floats | float]


@dataclass(frozen=True)
class Term:
    """One power law: what each constant is multiplied by in its logarithm.

    Attributes:
        by: name -> a number or (runs,).
        by_experts: the same, of what is multiplied with ln Ehat besides.
    """

    by: Columns
    by_experts: Columns | None = None


@dataclass(frozen=True)
class Terms:
    """The terms of a form over runs, as arrays.

    Attributes:
        fixed, with_experts: x and z above, (terms, runs, k); z is None where the form does not use Ehat.
        experts: E, (runs,).
    """

    fixed: Floats
    with_experts: Floats | None
    experts: Floats

    def log_loss(self, theta: Floats) -> Floats:
        """theta (problems, k) -> ln L (problems, runs)."""
        values, _ = self._logs(theta)
        top = values.max(axis=1, keepdims=True)
        logs: Floats = np.log(np.exp(values - top).sum(axis=1)) + top[:, 0]
        return logs

    def expand(self, theta: Floats) -> tuple[Floats, Floats]:
        """theta (problems, k) -> ln L (problems, runs) and its derivatives (problems, runs, k)."""
        values, of_experts = self._logs(theta)
        top = values.max(axis=1, keepdims=True)
        shares = np.exp(values - top)
        total = shares.sum(axis=1, keepdims=True)
        shares /= total
        slopes = np.einsum("pjr,jrk->prk", shares, self.fixed)
        if self.with_experts is not None and of_experts is not None:
            log_experts, by_kappa, by_maximum = self.saturated(theta)
            slopes += log_experts[..., None] * np.einsum("pjr,jrk->prk", shares, self.with_experts)
            inner = (shares * of_experts).sum(axis=1)
            slopes[..., -2] += inner * by_kappa
            slopes[..., -1] += inner * by_maximum
        return (np.log(total) + top)[:, 0], slopes

    def saturated(self, theta: Floats) -> tuple[Floats, Floats, Floats]:
        """ln Ehat and its derivatives by ln kappa and by ln E_max, each (problems, runs)."""
        with np.errstate(over="ignore"):  # E_max is infinite where nothing saturates
            kappa, maximum = np.exp(theta[:, -2:-1]), np.exp(theta[:, -1:])
        before = self.experts - 1 + kappa
        inverse = 1 / before + 1 / maximum
        return -np.log(inverse), kappa / before**2 / inverse, 1 / maximum / inverse

    def _logs(self, theta: Floats) -> tuple[Floats, Floats | None]:
        """The terms' logarithms (problems, terms, runs), and in them what ln Ehat is multiplied with."""
        values = np.einsum("jrk,pk->pjr", self.fixed, theta)
        if self.with_experts is None:
            return values, None
        of_experts = np.einsum("jrk,pk->pjr", self.with_experts, theta)
        return values + self.saturated(theta)[0][:, None] * of_experts, of_experts


@dataclass(frozen=True)
class Form(ABC):
    """A family of laws. Instances are stateless; those over families hold the labels that :meth:`bound` gave them.

    Attributes:
        title: as tables show it.
        source: the paper.
        levels: columns of :class:`toolkit.scaling.laws.runs.Runs` that must vary, and the least number of their values.
        family_levels: the same within every family that has constants of its own.
        coefficients: constants that are positive, and exponents' factors; in theta by their logarithms.
        guesses: of each other constant, where a fit begins.
        irreducible: the coefficient that stays at infinite size and data, or None.
    """

    title: ClassVar[str]
    source: ClassVar[str]
    levels: ClassVar[Mapping[str, int]]
    family_levels: ClassVar[Mapping[str, int]] = {}
    coefficients: ClassVar[tuple[str, ...]]
    guesses: ClassVar[Mapping[str, tuple[float, ...]]]
    irreducible: ClassVar[str | None]

    families: tuple[str, ...] = ()

    @abstractmethod
    def terms(self, runs: Runs) -> tuple[Term, ...]:
        """The power laws whose sum is the loss."""

    @property
    def names(self) -> tuple[str, ...]:
        """The constants in the order of theta; those of a family are written ``A[moe]``."""
        return (*self.coefficients, *self.guesses)

    @property
    def saturates(self) -> bool:
        """Whether the form uses Ehat."""
        return SATURATION[0] in self.names

    def bound(self, runs: Runs) -> Form:
        """The form for these runs' families: itself, unless constants differ between them."""
        return self

    def stem(self, name: str) -> str:
        """A constant without its family."""
        return name.partition("[")[0]

    def arrays(self, runs: Runs) -> Terms:
        """:meth:`terms` as arrays."""
        names, terms = self.names, self.terms(runs)

        def stacked(columns: list[Columns]) -> Floats:
            array = np.zeros((len(columns), len(runs), len(names)))
            for at, term in enumerate(columns):
                for name, values in term.items():
                    array[at, :, names.index(name)] = values
            return array

        of_experts = stacked([term.by_experts or {} for term in terms]) if self.saturates else None
        return Terms(stacked([term.by for term in terms]), of_experts, runs.experts)

    def predict(self, constants: Mapping[str, float], runs: Runs) -> Floats:
        """The loss of each run, (runs,), for named constants.

        Raises:
            ValueError: if the constants are not those of the form, or one that must be positive is not.
        """
        losses: Floats = np.exp(self.arrays(runs).log_loss(self.theta(constants)[None]))[0]
        return losses

    def theta(self, constants: Mapping[str, float]) -> Floats:
        """Named constants -> theta (k,).

        Raises:
            ValueError: as :meth:`predict`.
        """
        require(set(constants) == set(self.names), "constants", sorted(constants), ", ".join(self.names))
        values = np.array([constants[name] for name in self.names], dtype=np.float64)
        if self.saturates:
            start, maximum = values[-2:]
            require(0 < start < maximum, "E_start", float(start), f"between 0 and E_max={float(maximum)}")
            values[-2:] = -np.log(1 / start - 1 / maximum), np.log(maximum)
        for at in self.positive:
            require(values[at] > 0, self.names[at], float(values[at]), "positive")
            values[at] = np.log(values[at])
        return values

    def constants(self, theta: Floats) -> Floats:
        """theta (..., k) -> the named constants' values, (..., k)."""
        values = theta.copy()
        values[..., self.positive] = np.exp(theta[..., self.positive])
        if self.saturates:
            with np.errstate(over="ignore"):  # as in Terms.saturated
                kappa, maximum = np.exp(theta[..., -2]), np.exp(theta[..., -1])
            values[..., -2], values[..., -1] = 1 / (1 / kappa + 1 / maximum), maximum
        return values

    @property
    def positive(self) -> list[int]:
        """Where in theta the logarithms of coefficients stand."""
        return [at for at, name in enumerate(self.names) if self.stem(name) in self.coefficients]

    def shares(self, theta: Floats, runs: Runs) -> dict[str, float]:
        """Of each coefficient, the largest share of a run's loss that its terms have; theta is (k,)."""
        terms = self.arrays(runs)
        logs = terms._logs(theta[None])[0][0]
        share = np.exp(logs - terms.log_loss(theta[None])[0])
        return {self.names[at]: float(share[terms.fixed[..., at] != 0].max()) for at in self.positive}

    def starts(self, runs: Runs, irreducible: float | None = None) -> Floats:
        """Where fits begin, (starts, k): all guesses of the exponents, each with its best coefficients.

        Those are the non-negative least squares of relative errors (Lawson and Hanson 1974), where 0 is replaced by
        a ten-thousandth of the loss.
        """
        rest = [at for at in range(len(self.names)) if at not in self.positive]
        stems = list(self.guesses)
        theta = np.array(
            [
                [0.0 if at in self.positive else combination[stems.index(self.stem(name))]
                 for at, name in enumerate(self.names)]
                for combination in product(*self.guesses.values())
            ]
        )  # fmt: skip
        terms = self.arrays(runs)
        only_rest = replace(terms, fixed=np.where(np.isin(range(len(self.names)), rest), terms.fixed, 0.0))
        logs, _ = only_rest._logs(theta)
        carried = terms.fixed[..., self.positive] != 0  # (terms, runs, coefficients): which term a coefficient is of
        for at, values in enumerate(logs):
            columns = np.einsum("jr,jrc->rc", np.exp(values), carried) / runs.loss[:, None]
            theta[at, self.positive] = np.log(self._coefficients(columns, runs, irreducible))
        return theta

    def _coefficients(self, columns: Floats, runs: Runs, irreducible: float | None) -> Floats:
        """The coefficients (coefficients,) with which the columns (runs, coefficients) add up to 1 in every run."""
        names = [self.names[at] for at in self.positive]
        free = [at for at, name in enumerate(names) if irreducible is None or name != self.irreducible]
        target = np.ones(len(runs)) if irreducible is None else 1 - irreducible / runs.loss
        scale = columns.max(axis=0)
        found = np.full(len(names), 1.0 if irreducible is None else irreducible)
        found[free] = np.maximum(optimize.nnls(columns[:, free] / scale[free], target)[0], 1e-4) / scale[free]
        return found
