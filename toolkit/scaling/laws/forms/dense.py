"""Loss surfaces in parameters and tokens, L = E + A / N^alpha + B / D^beta: one for all families, or shared in part.

N are active parameters. Source: Hoffmann et al. 2022 (arXiv 2203.15556), equation 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from toolkit.checks import require
from toolkit.scaling.laws.forms.form import Columns, Form, Term
from toolkit.scaling.laws.runs import Runs

SLOPES = (0.1, 0.2, 0.35, 0.6, 1.0)
"""Exponents that fits begin at."""

_VARYING: dict[str, int] = {"active": 3, "tokens": 3}


@dataclass(frozen=True)
class Chinchilla(Form):
    """One surface for all runs: the families do not matter.

    >>> runs = Runs.of(active=[1e9], tokens=[2e10], loss=[2.6])
    >>> form = Chinchilla()
    >>> form.predict({"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}, runs).round(4)
    array([2.58])
    """

    title = "Chinchilla"
    source = "Hoffmann et al. 2022 (arXiv 2203.15556), equation 2"
    levels = _VARYING
    coefficients = ("E", "A", "B")
    guesses: ClassVar = {"alpha": SLOPES, "beta": SLOPES}
    irreducible = "E"

    def terms(self, runs: Runs) -> tuple[Term, ...]:
        """E, A / N^alpha and B / D^beta."""
        n, d = np.log(runs.active), np.log(runs.tokens)
        return Term({"E": 1}), Term({"A": 1, "alpha": -n}), Term({"B": 1, "beta": -d})


@dataclass(frozen=True)
class OneExponent(Form):
    """One surface for all runs, with one exponent for size and data: L = E + A / N^alpha + B / D^alpha.

    Runs of equal tokens per parameter then fall along parallel lines, as far as the overtrained ones. In the paper's
    letters alpha is 2 eta, of L = E + (a M^eta + b M^-eta) C^-eta with M = D / N.
    Source: Gadre et al. 2024 (arXiv 2403.08540).
    """

    title = "one exponent"
    source = "Gadre et al. 2024 (arXiv 2403.08540)"
    levels = _VARYING
    coefficients = ("E", "A", "B")
    guesses: ClassVar = {"alpha": SLOPES}
    irreducible = "E"

    def terms(self, runs: Runs) -> tuple[Term, ...]:
        """E, A / N^alpha and B / D^alpha."""
        n, d = np.log(runs.active), np.log(runs.tokens)
        return Term({"E": 1}), Term({"A": 1, "alpha": -n}), Term({"B": 1, "alpha": -d})


@dataclass(frozen=True)
class FamilySurfaces(Form):
    """Surfaces of families that share some of their constants.

    Attributes:
        families: what the constants that are not shared are of; :meth:`bound` fills them in.
    """

    levels = _VARYING
    family_levels: ClassVar = {"active": 2}
    coefficients = ("E", "A", "B")
    guesses: ClassVar = {"alpha": SLOPES, "beta": SLOPES}
    irreducible = "E"
    shared: ClassVar[tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """Shared constants by their names, others once for each family."""
        return tuple(
            name
            for stem in super().names
            for name in ([stem] if stem in self.shared else [f"{stem}[{family}]" for family in self.families])
        )

    def bound(self, runs: Runs) -> Form:
        """The form of these runs' families."""
        return type(self)(families=runs.families)

    def terms(self, runs: Runs) -> tuple[Term, ...]:
        """E, A_f / N^alpha_f and B_f / D^beta_f.

        Raises:
            ValueError: if a run is of a family that the form has no constants of.
        """
        unknown = sorted(set(runs.families) - set(self.families))
        require(not unknown, "family", ", ".join(unknown), f"one of those fitted: {', '.join(self.families)}")
        n, d = np.log(runs.active), np.log(runs.tokens)
        size, data = self._columns(runs, {"A": 1.0, "alpha": -n}), self._columns(runs, {"B": 1.0, "beta": -d})
        return Term({"E": 1}), Term(size), Term(data)

    def _columns(self, runs: Runs, columns: Columns) -> Columns:
        """Each column once, if its constant is shared, or once for each family, 0 outside it."""
        return {
            name: values if stem in self.shared else values * (runs.family == family)
            for stem, values in columns.items()
            for name, family in ([(stem, "")] if stem in self.shared else self._of_families(stem))
        }

    def _of_families(self, stem: str) -> list[tuple[str, str]]:
        return [(f"{stem}[{family}]", family) for family in self.families]


@dataclass(frozen=True)
class SharedIrreducible(FamilySurfaces):
    """A surface for each family, all with one irreducible loss: the text's, not the model's."""

    title = "own surfaces, shared E"
    source = "Hoffmann et al. 2022 (arXiv 2203.15556), equation 2, of each family"
    family_levels = _VARYING
    shared = ("E",)


@dataclass(frozen=True)
class SharedExponents(FamilySurfaces):
    """Families that differ by constant factors of their size and of their data: they share E, alpha and beta."""

    title = "own A and B, shared exponents"
    source = "Hoffmann et al. 2022 (arXiv 2203.15556), equation 2, of each family"
    shared = ("E", "alpha", "beta")
