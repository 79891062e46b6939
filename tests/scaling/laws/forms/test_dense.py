"""Surfaces in parameters and tokens against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_laws import FAMILIES, KNOWN, OWN, OWN_EXPONENTS, SHARED, table

from toolkit.scaling.laws import Chinchilla, LossSurface, OneExponent, Runs, SharedExponents, SharedIrreducible

CONSTANTS = {form.title: constants for form, constants in KNOWN}
RUNS = table()


def test_chinchilla_is_the_loss_surface() -> None:
    surface = LossSurface(A=406.4, B=410.7, **SHARED)
    np.testing.assert_allclose(
        Chinchilla().predict(CONSTANTS["Chinchilla"], RUNS), surface.loss(RUNS.active, RUNS.tokens), rtol=1e-12
    )


@pytest.mark.parametrize(("form", "shared"), [(SharedIrreducible, ("E",)), (SharedExponents, ("E", "alpha", "beta"))])
def test_each_family_is_a_surface_of_its_own(form: type, shared: tuple[str, ...]) -> None:
    predicted = form(FAMILIES).predict(CONSTANTS[form.title], RUNS)
    own = {**OWN, **OWN_EXPONENTS}
    for at, family in enumerate(FAMILIES):
        numbers = {name: SHARED[name] if name in shared else own[name][at] for name in ("E", "A", "B", "alpha", "beta")}
        mine = RUNS.where(RUNS.family == family)
        expected = LossSurface(**numbers).loss(mine.active, mine.tokens)
        np.testing.assert_allclose(predicted[RUNS.family == family], expected, rtol=1e-12)


def test_one_exponent_is_gadres_law() -> None:
    """L = E + (a M^eta + b M^-eta) C^-eta with C = 6 N D, M = D / N and eta = alpha / 2."""
    constants = CONSTANTS["one exponent"]
    eta, ratio, flops = constants["alpha"] / 2, RUNS.tokens / RUNS.active, 6 * RUNS.active * RUNS.tokens
    a, b = constants["A"] * 6**eta, constants["B"] * 6**eta
    expected = constants["E"] + (a * ratio**eta + b * ratio**-eta) * flops**-eta
    np.testing.assert_allclose(OneExponent().predict(constants, RUNS), expected, rtol=1e-12)


def test_a_family_that_was_not_fitted_is_named() -> None:
    other = Runs.of([1e6], [1e9], [2.0], family="new")
    with pytest.raises(ValueError, match=r"family='new'.*dense, moe, fine"):
        SharedIrreducible(FAMILIES).predict(CONSTANTS["own surfaces, shared E"], other)
