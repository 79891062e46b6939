"""The one engine of all forms: known laws are found again, fits are optima, intervals hold what they say."""

from __future__ import annotations

import csv
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy import optimize
from synthetic_laws import DATA, FAMILIES, KNOWN, TITLES, measured, table

from toolkit.scaling.laws import (
    Chinchilla,
    Clark,
    Form,
    Granularity,
    JointMoE,
    OneExponent,
    Runs,
    SharedExponents,
    SharedIrreducible,
    SparsitySurface,
    fit_form,
    fit_loss_surface,
)
from toolkit.scaling.laws.form_fit import METHODS
from toolkit.scaling.laws.resampling import resampled_within

every_form = pytest.mark.parametrize(("form", "constants"), KNOWN, ids=TITLES)
every_method = pytest.mark.parametrize("method", METHODS)
CHINCHILLA, CONSTANTS = KNOWN[0]


@every_method
@every_form
def test_a_law_without_noise_is_found_again(form: Form, constants: dict[str, float], method: str) -> None:
    fitted = fit_form(form, measured(form, constants), method=method)
    new = table(40, seed=7)
    np.testing.assert_allclose(fitted.predict(new), form.predict(constants, new), rtol=1e-6)
    assert fitted.theta == pytest.approx(constants, rel=1e-4)
    assert fitted.free_parameters == len(constants)


@every_form
def test_a_given_irreducible_loss_stays_and_the_rest_is_found(form: Form, constants: dict[str, float]) -> None:
    if form.irreducible is None:
        pytest.skip("the form has none")
    given = constants[form.irreducible]
    fitted = fit_form(form, measured(form, constants), irreducible=given)
    assert fitted.theta == pytest.approx(constants, rel=1e-4)
    assert fitted.free_parameters == len(constants) - 1
    held = fit_form(form, measured(form, constants), irreducible=0.5 * given)
    assert held.theta[form.irreducible] == pytest.approx(0.5 * given)


@every_method
@every_form
def test_a_fit_is_no_worse_than_scipys_from_the_truth(form: Form, constants: dict[str, float], method: str) -> None:
    runs = measured(form, constants, noise=0.01)
    fitted, terms = fit_form(form, runs, method=method), form.arrays(runs)

    def residuals(theta: np.ndarray) -> np.ndarray:
        return terms.log_loss(theta[None])[0] - np.log(runs.loss)

    options = {"loss": "huber", "f_scale": 1e-3} if method == "huber" else {}
    oracle = optimize.least_squares(residuals, form.theta(constants), x_scale="jac", **options)
    assert fitted.objective <= oracle.cost * (1 + 1e-6)


def test_outliers_move_the_squares_and_hardly_the_huber_fit() -> None:
    runs = measured(CHINCHILLA, CONSTANTS)
    spoiled = replace(runs, loss=np.where(np.arange(len(runs)) % 18 == 0, 1.3 * runs.loss, runs.loss))
    robust, squares = (fit_form(CHINCHILLA, spoiled, method=method) for method in ("huber", "squares"))
    assert abs(robust.theta["alpha"] - 0.34) < 0.01 < abs(squares.theta["alpha"] - 0.34)


def test_chinchillas_published_points_give_the_surface_fits_numbers() -> None:
    """Two engines, one objective: Hoffmann's sum of Huber losses of log losses."""
    if not (DATA / "chinchilla.csv").exists():
        pytest.skip("the published points are not here")
    rows = list(csv.DictReader((DATA / "chinchilla.csv").open()))
    params, flops, loss = (
        np.array([float(row[name]) for row in rows]) for name in ("Model Size", "Training FLOP", "loss")
    )
    kept = loss < np.sort(loss)[-5]
    runs = Runs.of(params[kept], flops[kept] / (6 * params[kept]), loss[kept])
    fitted = fit_form(Chinchilla(), runs, method="huber")
    assert fitted.objective <= 1.018275e-3
    assert [fitted.theta[name] for name in ("alpha", "beta", "E")] == pytest.approx([0.3473, 0.3672, 1.8172], abs=5e-4)


def test_families_that_do_not_differ_give_one_surface() -> None:
    runs = measured(CHINCHILLA, CONSTANTS)
    theta = fit_form(SharedIrreducible(), runs).theta
    alone = fit_loss_surface(runs.active, runs.tokens, runs.loss)
    for family in FAMILIES:
        assert theta[f"alpha[{family}]"] == pytest.approx(alone.alpha, rel=1e-5)
    assert theta["E"] == pytest.approx(alone.E, rel=1e-5)


@every_form
def test_the_papers_constants_ask_for_no_caution(form: Form, constants: dict[str, float]) -> None:
    assert fit_form(form, measured(form, constants)).cautions == ()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"E": 1e-9}, "E is at 0: the runs do not reach far enough"),
        ({"A": 1e-9}, "A is at 0: the losses show nothing of its term"),
        ({"alpha": -0.05, "A": 0.1}, "alpha = -0.05 is not above 0"),
        ({"beta": 1.2, "B": 1e9}, "beta = 1.2 is beyond 1, where fits begin"),
    ],
)
def test_constants_that_tell_nothing_are_cautioned_of(changed: dict[str, float], said: str) -> None:
    fitted = fit_form(CHINCHILLA, measured(CHINCHILLA, CONSTANTS))
    (line,) = replace(fitted, vector=CHINCHILLA.theta({**CONSTANTS, **changed})).cautions
    assert line.startswith(said)


def test_cautions_know_the_sign_of_a_form_s_exponents_and_name_the_family() -> None:
    joint, constants = KNOWN[6]
    fitted = fit_form(joint, measured(joint, constants))
    (line,) = replace(fitted, vector=joint.theta({**constants, "alpha": 0.01, "a": 1.0})).cautions
    assert line.startswith("alpha = 0.01 is not below 0")
    form, constants = KNOWN[2]
    fitted = fit_form(form, measured(form, constants))
    (line,) = replace(fitted, vector=form.theta({**constants, "B[moe]": 1e-9})).cautions
    assert line.startswith("B[moe] is at 0")


def test_residuals_are_of_log_losses() -> None:
    runs = measured(CHINCHILLA, CONSTANTS, noise=0.01)
    fitted = fit_form(CHINCHILLA, runs)
    np.testing.assert_allclose(np.exp(fitted.residuals) * fitted.predict(runs), runs.loss)
    assert fitted.objective == pytest.approx((fitted.residuals**2).sum() / 2)


def test_the_bootstrap_refits_every_resample() -> None:
    runs = measured(CHINCHILLA, CONSTANTS, noise=0.01)
    fitted = fit_form(CHINCHILLA, runs)
    one, again, other = (fitted.bootstrap(20, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.vectors, again.vectors)
    assert not np.allclose(one.vectors, other.vectors)
    np.testing.assert_allclose(one.predict(runs)[3], fitted.form.predict(
        {name: one.values(name)[3] for name in fitted.form.names}, runs
    ))  # fmt: skip
    weights = resampled_within(runs.family, runs.group, 20, np.random.default_rng(1)).astype(int)
    for row, predicted in zip(weights[:5], one.predict(runs), strict=False):
        drawn = Runs(**{column.name: np.repeat(getattr(runs, column.name), row) for column in fields(Runs)})
        np.testing.assert_allclose(predicted, fit_form(CHINCHILLA, drawn).predict(runs), rtol=1e-5)
        assert abs(predicted / fitted.predict(runs) - 1).max() > 1e-3  # another resample, another fit


def spread(runs: Runs, **settings: float) -> float:
    fitted = fit_form(Chinchilla(), runs, **settings)  # type: ignore[arg-type]
    return float(fitted.bootstrap(400).values("alpha").std())


def test_runs_of_a_group_are_drawn_together() -> None:
    """Copies in one group tell nothing new; as groups of their own they would seem to halve the variance."""
    runs = measured(CHINCHILLA, CONSTANTS, noise=0.01)
    twice = {name: np.tile(getattr(runs, name), 2) for name in ("active", "tokens", "loss")}
    together = Runs.of(**twice, group=np.tile(runs.group, 2).tolist())
    apart = Runs.of(**twice)
    assert spread(together) == pytest.approx(spread(Runs.of(runs.active, runs.tokens, runs.loss)), rel=0.15)
    assert spread(apart) == pytest.approx(spread(together) / np.sqrt(2), rel=0.2)


def test_no_family_vanishes_from_a_resample() -> None:
    """Four runs of one family among 64 would all be left out of one resample in sixty, and their constant stay put."""
    form, constants = KNOWN[3]
    runs = measured(form, constants, noise=0.01, runs=table(90))
    few = runs.where((runs.family != "fine") | (np.cumsum(runs.family == "fine") <= 4))
    fitted = fit_form(SharedExponents(), few)
    assert (fitted.bootstrap(400).values("A[fine]") != fitted.theta["A[fine]"]).all()


def test_intervals_hold_what_they_say() -> None:
    """The prediction interval a new run, the confidence interval the law's own loss."""
    rng, held, within = np.random.default_rng(0), [], []
    new = table(30, seed=9)
    for _ in range(50):
        runs = replace(table(60), loss=CHINCHILLA.predict(CONSTANTS, table(60)))
        runs = replace(runs, loss=runs.loss * np.exp(0.01 * rng.standard_normal(60)))
        resampled = fit_form(CHINCHILLA, runs).bootstrap(200)
        truth = CHINCHILLA.predict(CONSTANTS, new)
        low, high = resampled.interval(new, 0.9)
        made = truth * np.exp(0.01 * rng.standard_normal(30))
        held.append((low < made) & (made < high))
        tight = resampled.interval(new, 0.9, noise=False)
        within.append((tight[0] < truth) & (truth < tight[1]))
        assert (tight[1] - tight[0] < high - low).all()
    assert 0.86 < np.mean(held) < 0.93
    assert 0.8 < np.mean(within) < 0.95


def test_too_few_runs_are_refused_with_both_numbers() -> None:
    for form, constants in KNOWN:
        runs = measured(form, constants, runs=table(len(constants) - 1))
        with pytest.raises(ValueError, match=f"runs={len(constants) - 1}: it must be {len(constants)} or more"):
            fit_form(form, runs)


@pytest.mark.parametrize(
    ("form", "column"),
    [
        (Granularity(), "granularity"), (Clark(), "experts"), (JointMoE(), "experts"), (SparsitySurface(), "sparsity"),
        (Chinchilla(), "active"), (Chinchilla(), "tokens"),
    ],
)  # fmt: skip
def test_a_form_is_not_fitted_to_what_does_not_vary(form: Form, column: str) -> None:
    runs = replace(measured(*KNOWN[0]), family=np.full(90, "one"))
    if column == "sparsity":
        still = replace(runs, total=2 * runs.active)
    elif column == "active":
        still = replace(runs, active=np.full(90, 1e6))
    else:
        still = replace(runs, **{column: np.ones(90)})
    with pytest.raises(ValueError, match=f"{column}='1 different values'.*{form.title}"):
        fit_form(form, still)


@pytest.mark.parametrize(("form", "size"), [(Chinchilla(), "active"), (OneExponent(), "active")])
def test_a_form_is_not_fitted_to_sizes_that_tokens_follow(form: Form, size: str) -> None:
    """At 20 tokens for each parameter the two power laws are two of one variable."""
    runs = measured(*KNOWN[0])
    line = replace(runs, tokens=20 * runs.active)
    with pytest.raises(
        ValueError, match=rf"tokens / {size}='1 different values': it must be 2 or more for {form.title}"
    ):
        fit_form(form, line)


def test_a_family_whose_tokens_follow_its_size_is_named() -> None:
    form, constants = KNOWN[2]
    runs = measured(form, constants)
    line = replace(runs, tokens=np.where(runs.family == "fine", 20 * runs.active, runs.tokens))
    with pytest.raises(ValueError, match="tokens / active of fine='1 different values'"):
        fit_form(SharedIrreducible(), line)


@every_form
def test_losses_that_are_all_the_same_tell_no_law(form: Form, constants: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="^loss=3.0: it must be not the same in every run"):
        fit_form(form, replace(table(), loss=np.full(90, 3.0)))


@every_form
def test_repeats_of_few_points_are_refused_as_the_few(form: Form, constants: dict[str, float]) -> None:
    few = table(len(constants) - 1)
    runs = Runs(**{column.name: np.tile(getattr(few, column.name), 10) for column in fields(Runs)})
    noisy = replace(runs, loss=np.exp(0.01 * np.random.default_rng(0).standard_normal(len(runs))))
    with pytest.raises(ValueError, match=f"runs='{len(few)} different ones': it must be {len(constants)} or more"):
        fit_form(form, noisy)


def test_repeats_of_few_points_of_a_family_are_named() -> None:
    """Four constants of its own from three points, though as many sizes and token counts as a term takes."""
    runs = measured(*KNOWN[2], noise=0.01)
    fine = np.flatnonzero(runs.family == "fine")
    at = np.arange(90)
    at[fine] = fine[np.arange(len(fine)) % 3]
    repeated = Runs(**{column.name: getattr(runs, column.name)[at] for column in fields(Runs)})
    with pytest.raises(ValueError, match="runs of fine='3 different ones': it must be 4 or more"):
        fit_form(SharedIrreducible(), replace(repeated, loss=runs.loss))


def test_a_family_that_tells_too_little_is_named() -> None:
    form, constants = KNOWN[2]
    runs = measured(form, constants)
    few = runs.where((runs.family != "fine") | (np.cumsum(runs.family == "fine") <= 2))
    with pytest.raises(ValueError, match="active of fine='2 different values'"):
        fit_form(SharedIrreducible(), few)


def test_bad_settings_are_named() -> None:
    runs = measured(CHINCHILLA, CONSTANTS)
    for form, settings, match in (
        (CHINCHILLA, {"method": "mean"}, "method='mean'"),
        (CHINCHILLA, {"delta": 0.0}, "delta=0"),
        (CHINCHILLA, {"irreducible": 9.0}, "irreducible=9.0"),
        (CHINCHILLA, {"irreducible": 0.0}, "irreducible=0.0"),
        (Clark(), {"irreducible": 1.0}, "Clark has no irreducible loss"),
    ):
        with pytest.raises(ValueError, match=match):
            fit_form(form, runs, **settings)  # type: ignore[arg-type]
    fitted = fit_form(CHINCHILLA, runs)
    with pytest.raises(ValueError, match="resamples=1"):
        fitted.bootstrap(1)
    resampled = fitted.bootstrap(2)
    with pytest.raises(ValueError, match="name='gamma'"):
        resampled.values("gamma")
    with pytest.raises(ValueError, match="level=1"):
        resampled.interval(runs, 1.0)
    five = runs.where(np.arange(90) < 5)
    with pytest.raises(ValueError, match="noise='True, of 5 runs'"):
        fit_form(CHINCHILLA, five).bootstrap(2).interval(five)
