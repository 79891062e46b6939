"""y = 10^intercept x^exponent by least squares of logarithms, with the errors of both numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from toolkit.checks import require, require_choice
from toolkit.scaling.laws.surface import require_sound


@dataclass(frozen=True)
class PowerLaw:
    """A fitted power law.

    Attributes:
        exponent: of x.
        intercept: log10 y at x = 1.
        exponent_error, intercept_error: standard errors; nan where two points leave nothing to tell them by.
        points: how many were fitted.
    """

    exponent: float
    intercept: float
    exponent_error: float
    intercept_error: float
    points: int

    def at(self, x: float) -> float:
        """y at ``x``."""
        return float(10 ** (self.intercept + self.exponent * math.log10(x)))

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Of ``"exponent"`` or ``"intercept"``, by Student's t of points - 2 degrees of freedom.

        Raises:
            ValueError: for another name, a level not between 0 and 1, or fewer than three points.
        """
        require_choice("name", name, ("exponent", "intercept"))
        require(0 < level < 1, "level", level, "between 0 and 1")
        require(self.points >= 3, "points", self.points, "3 or more, or there is no interval")
        half = float(special.stdtrit(self.points - 2, (1 + level) / 2)) * getattr(self, f"{name}_error")
        return getattr(self, name) - half, getattr(self, name) + half


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Least squares of log10 y in log10 x.

    Raises:
        ValueError: if there are not two different x, or a number is not positive and finite.
    """
    require(len(x) == len(y), "y", f"{len(y)} points", f"as many as x: {len(x)}")
    for name, values in (("x", x), ("y", y)):
        require_sound(name, np.asarray(values, dtype=np.float64))
    require(len(set(x)) >= 2, "x", sorted(set(x)), "two different values or more")
    log_x, log_y = np.log10(x), np.log10(y)
    centre, spread = log_x.mean(), ((log_x - log_x.mean()) ** 2).sum()
    exponent = float(((log_x - centre) * log_y).sum() / spread)
    intercept = float(log_y.mean() - exponent * centre)
    squares = float(((log_y - intercept - exponent * log_x) ** 2).sum())
    variance = squares / (len(x) - 2) if len(x) > 2 else math.nan
    errors = math.sqrt(variance / spread), math.sqrt(variance * (1 / len(x) + centre**2 / spread))
    return PowerLaw(exponent, intercept, *errors, len(x))
