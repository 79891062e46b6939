"""Laws of mixtures of experts: how the loss depends on the number of experts, their granularity and the sparsity.

Each is over the size that its paper counts: Clark et al. and Ludziejewski et al. active parameters, Krajewski et al.
and Abnar et al. all parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from toolkit.checks import require
from toolkit.scaling.laws.forms.form import Form, Term
from toolkit.scaling.laws.runs import Runs
from toolkit.scaling.laws.surface import Floats

_SATURATION: dict[str, tuple[float, ...]] = {"E_start": (0.0, 1.0), "E_max": (3.0, 6.0)}
"""Where ln kappa and ln E_max begin."""


@dataclass(frozen=True)
class Clark(Form):
    """Routed models of one training length: log10 L = a log10 N + b log10 Ehat + c log10 N log10 Ehat + d.

    N are the parameters of the dense model whose feed-forwards are replaced, which with one expert for each token are
    the active ones. The law does not know tokens: fit it to runs of one number of tokens.
    Source: Clark et al. 2022 (arXiv 2202.01169).
    """

    title = "Clark"
    source = "Clark et al. 2022 (arXiv 2202.01169)"
    levels: ClassVar = {"active": 2, "experts": 3}
    coefficients = ()
    guesses: ClassVar = {"a": (0.0,), "b": (0.0,), "c": (0.0,), "d": (0.0,), **_SATURATION}
    irreducible = None

    def terms(self, runs: Runs) -> tuple[Term, ...]:
        """One power law."""
        n = np.log(runs.active)
        return (Term({"a": n, "d": np.log(10)}, {"b": 1, "c": n / np.log(10)}),)

    def starts(self, runs: Runs, irreducible: float | None = None) -> Floats:
        """Where fits begin, (starts, k): the least squares of ln L for each guess of Ehat."""
        terms, starts = self.arrays(runs), []
        for guess in product(np.linspace(-1, 2, 4), np.linspace(2, 8, 4)):
            theta = np.array([0.0] * 4 + list(guess))
            log_experts = terms.saturated(theta[None])[0][0]
            columns = terms.fixed[0] + log_experts[:, None] * (
                terms.with_experts[0] if terms.with_experts is not None else 0.0
            )
            theta[:4] = np.linalg.lstsq(columns[:, :4], np.log(runs.loss), rcond=None)[0]
            starts.append(theta)
        return np.array(starts)

    def effective_parameters(self, constants: dict[str, float], runs: Runs) -> Floats:
        """The size (runs,) of the dense model that reaches each run's predicted loss, Clark's N-bar.

        A dense model has one expert, Ehat = E_start.

        Raises:
            ValueError: if the dense model's loss does not fall with its size.
        """
        start = np.log(constants["E_start"])
        slope = constants["a"] + constants["c"] * start / np.log(10)
        require(slope < 0, "a + c log10 E_start", slope, "negative: a dense model's loss must fall with its size")
        level = constants["b"] * start + constants["d"] * np.log(10)
        sizes: Floats = np.exp((np.log(self.predict(constants, runs)) - level) / slope)
        return sizes


@dataclass(frozen=True)
class Granularity(Form):
    """Fine-grained experts of one expansion rate: L = c + (g / G^gamma + a) / N^alpha + b / D^beta.

    N are all parameters: with active ones the published constants put mixtures above dense models.
    Source: Krajewski et al. 2024 (arXiv 2402.07871).
    """

    title = "granularity"
    source = "Krajewski et al. 2024 (arXiv 2402.07871)"
    levels: ClassVar = {"total": 3, "tokens": 3, "granularity": 3}
    coefficients = ("c", "g", "a", "b")
    guesses: ClassVar = {"gamma": (0.3, 0.6, 1.2), "alpha": (0.1, 0.2, 0.4, 0.8), "beta": (0.1, 0.2, 0.4, 0.8)}
    irreducible = "c"

    def terms(self, runs: Runs) -> tuple[Term, ...]:
        """c, g / (G^gamma N^alpha), a / N^alpha and b / D^beta."""
        n, d, g = np.log(runs.total), np.log(runs.tokens), np.log(runs.granularity)
        return (
            Term({"c": 1}),
            Term({"g": 1, "gamma": -g, "alpha": -n}),
            Term({"a": 1, "alpha": -n}),
            Term({"b": 1, "beta": -d}),
        )


@dataclass(frozen=True)
class JointMoE(Form):
    """Dense models and mixtures together: L = a Ehat^delta N^(alpha + gamma ln Ehat) + b Ehat^omega D^(...) + c.

    The second exponent is beta + zeta ln Ehat; alpha and beta are negative. N are active parameters.
    Source: Ludziejewski et al. 2025 (arXiv 2502.05172), equation 6.
    """

    title = "joint MoE"
    source = "Ludziejewski et al. 2025 (arXiv 2502.05172), equation 6"
    levels: ClassVar = {"active": 3, "tokens": 3, "experts": 3}
    coefficients = ("a", "b", "c")
    guesses: ClassVar = {
        "alpha": (-0.1, -0.2, -0.4, -0.8), "delta": (0.0,), "gamma": (0.0,),
        "beta": (-0.1, -0.2, -0.4, -0.8), "omega": (0.0,), "zeta": (0.0,), **_SATURATION,
    }  # fmt: skip
    irreducible = "c"

    def terms(self, runs: Runs) -> tuple[Term, ...]:
        """The terms of size and of data, and c."""
        n, d = np.log(runs.active), np.log(runs.tokens)
        return (
            Term({"a": 1, "alpha": n}, {"delta": 1, "gamma": n}),
            Term({"b": 1, "beta": d}, {"omega": 1, "zeta": d}),
            Term({"c": 1}),
        )


@dataclass(frozen=True)
class SparsitySurface(Form):
    """Size, data and sparsity: L = a / N^alpha + b / D^beta + c / (1 - S)^lambda + d / ((1 - S)^delta N^gamma) + e.

    N are all parameters. The paper's S is the share of experts left unused; here it is that of parameters, which a
    shared trunk keeps below it. Its published lambda is negative.
    Source: Abnar et al. 2025 (arXiv 2501.12370), equation 6.
    """

    title = "sparsity"
    source = "Abnar et al. 2025 (arXiv 2501.12370), equation 6"
    levels: ClassVar = {"total": 3, "tokens": 3, "sparsity": 3}
    coefficients = ("a", "b", "c", "d", "e")
    guesses: ClassVar = {
        "alpha": (0.2, 0.6), "beta": (0.2, 0.5), "lambda": (-0.2, 0.2, 1.0), "delta": (0.2, 0.6), "gamma": (0.1, 0.4),
    }  # fmt: skip
    irreducible = "e"

    def terms(self, runs: Runs) -> tuple[Term, ...]:
        """The terms of size, data, sparsity, size and sparsity, and e."""
        n, d, kept = np.log(runs.total), np.log(runs.tokens), np.log(1 - runs.sparsity)
        return (
            Term({"a": 1, "alpha": -n}),
            Term({"b": 1, "beta": -d}),
            Term({"c": 1, "lambda": -kept}),
            Term({"d": 1, "delta": -kept, "gamma": -n}),
            Term({"e": 1}),
        )
