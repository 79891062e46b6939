"""What every form must do, whatever its formula."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_laws import KNOWN, TITLES, measured, table

from toolkit.scaling.laws import Chinchilla, Form, JointMoE, SharedIrreducible

every_form = pytest.mark.parametrize(("form", "constants"), KNOWN, ids=TITLES)


@every_form
def test_constants_and_theta_are_one(form: Form, constants: dict[str, float]) -> None:
    theta = form.theta(constants)
    assert dict(zip(form.names, form.constants(theta), strict=True)) == pytest.approx(constants, rel=1e-12)
    assert len(set(form.names)) == len(constants)


@every_form
def test_slopes_are_those_of_central_differences(form: Form, constants: dict[str, float]) -> None:
    terms, theta, step = form.arrays(table()), form.theta(constants)[None], 1e-6
    logs, slopes = terms.expand(theta)
    np.testing.assert_allclose(logs, terms.log_loss(theta), rtol=1e-14)
    for at in range(theta.shape[1]):
        move = np.eye(theta.shape[1])[at] * step
        difference = (terms.log_loss(theta + move) - terms.log_loss(theta - move)) / (2 * step)
        np.testing.assert_allclose(slopes[..., at], difference, atol=1e-7)


@every_form
def test_many_thetas_at_once_are_each_alone(form: Form, constants: dict[str, float]) -> None:
    terms, theta = form.arrays(table()), form.theta(constants)
    many = np.stack([theta, 1.01 * theta])
    np.testing.assert_allclose(terms.log_loss(many)[1], terms.log_loss(1.01 * theta[None])[0])


@every_form
def test_starts_are_finite_and_no_worse_than_a_constant_loss(form: Form, constants: dict[str, float]) -> None:
    runs = measured(form, constants)
    logs = form.arrays(runs).log_loss(form.starts(runs))
    assert np.isfinite(logs).all()
    spread = np.log(runs.loss) - np.log(runs.loss).mean()
    assert ((logs - np.log(runs.loss)) ** 2).sum(axis=1).min() < 0.2 * (spread**2).sum()


@every_form
def test_a_given_irreducible_loss_is_in_every_start(form: Form, constants: dict[str, float]) -> None:
    if form.irreducible is None:
        pytest.skip("the form has none")
    starts = form.constants(form.starts(measured(form, constants), 0.3))
    np.testing.assert_allclose(starts[:, form.names.index(form.irreducible)], 0.3)


def test_forms_compare_by_their_families() -> None:
    assert SharedIrreducible(("a",)) != SharedIrreducible(("b",)) != SharedIrreducible()
    assert SharedIrreducible().bound(table()) == SharedIrreducible(table().families)
    assert Chinchilla().bound(table()) == Chinchilla()


def test_bad_constants_are_named() -> None:
    form, constants = KNOWN[0]
    with pytest.raises(ValueError, match="constants="):
        form.predict({**constants, "C": 1.0}, table())
    with pytest.raises(ValueError, match="A=-1"):
        form.predict({**constants, "A": -1.0}, table())
    joint = {**dict(KNOWN)[JointMoE()], "E_start": 300.0}
    with pytest.raises(ValueError, match="E_start=300"):
        JointMoE().predict(joint, table())
