"""Multipliers by a law: known gains are found, intervals hold them, and what was not trained is told."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from sparsity_cases import CONTEXT, FAMILIES, LAW, SHAPE, VOCAB, gain_law, known_law, law_rows, plain_widths

from toolkit.scaling.laws import (
    Chinchilla,
    FormBootstrap,
    JointMoE,
    Runs,
    SharedExponents,
    SparsitySurface,
    fit_form,
    runs_of,
)
from toolkit.scaling.laws.forms import Form
from toolkit.scaling.laws.validation import Score, Selection, SelectionTable
from toolkit.scaling.sparsity.frontier import LawMultiplier, best_law, best_losses, law_multipliers, tells_apart
from toolkit.scaling.sparsity.widths import Widths, architecture

WIDTHS = {family: plain_widths(family) for family in FAMILIES}
BUDGETS = np.array([1e11, 2e11, 4e11])
TRAINED = dict.fromkeys(FAMILIES, (1e11, 4e11))
RUNS = runs_of(law_rows(), architecture(SHAPE))


def certain(constants: dict[str, float]) -> tuple[dict[str, float], FormBootstrap]:
    law = known_law(constants, RUNS)
    return constants, FormBootstrap(law, np.tile(law.vector, (3, 1)), 0)


def multipliers(
    gain: float, budgets: np.ndarray = BUDGETS, trained: dict[str, tuple[float, float]] = TRAINED
) -> list[LawMultiplier]:
    _, draws = certain(gain_law(gain))
    return law_multipliers(draws.fitted, draws, WIDTHS, "dense", budgets, trained)


@pytest.mark.parametrize("gain", [0.3, 1.0, 1.5, 20.0])
def test_a_known_gain_in_compute_is_found_at_every_budget(gain: float) -> None:
    """L_moe(N, C) = L_dense(N, gain C) at every size, so the frontiers are one gain apart, whatever the widths."""
    found = multipliers(gain)
    assert [(entry.family, entry.budget) for entry in found] == [("moe", budget) for budget in BUDGETS]
    for entry in found:
        assert entry.estimate.value == pytest.approx(gain, rel=2e-3)
        assert entry.estimate.low == entry.estimate.high == entry.estimate.value  # every draw is the law


def test_the_best_width_and_loss_are_those_of_brute_force() -> None:
    for entry in multipliers(1.5):
        losses = {
            dim: LAW["E"]
            + LAW["A[dense]"] / (24 * dim**2) ** LAW["alpha"]
            + LAW["B[dense]"] / (1.5 * entry.budget / (6 * 24 * dim**2)) ** LAW["beta"]
            for dim in WIDTHS["moe"].dims
        }
        assert entry.dim == min(losses, key=lambda dim: losses[dim])
        assert entry.loss == pytest.approx(min(losses.values()))


@pytest.mark.parametrize(
    ("gain", "budgets", "extrapolated"),
    [
        (1.5, (1e11, 2e11), (False, False)),
        (1.5, (2e11, 4e11), (False, True)),  # the baseline would need 6e11
        (0.5, (1e11, 2e11), (True, False)),
        (1.0, (1e11, 4e11), (False, False)),
        (0.3, (4e11, 8e11), (False, True)),  # it would need 2.4e11, but the mixture was not trained at 8e11
    ],
)
def test_extrapolated_is_what_was_not_trained_of_either_side(
    gain: float, budgets: tuple[float, ...], extrapolated: tuple[bool, ...]
) -> None:
    found = multipliers(gain, np.array(budgets))
    assert tuple(entry.estimate.extrapolated for entry in found) == extrapolated


def test_a_family_is_extrapolated_by_its_own_budgets() -> None:
    found = multipliers(0.5, trained={"dense": (1e11, 4e11), "moe": (1e11, 2e11)})
    assert [entry.estimate.extrapolated for entry in found] == [True, False, True]


def test_what_no_compute_reaches_is_unbounded_and_never_the_end_of_the_range() -> None:
    assert all(math.isinf(entry.estimate.value) for entry in multipliers(1e6))
    assert all(entry.estimate.value == 0 for entry in multipliers(1e-6))


def test_the_edge_of_the_widths_is_told() -> None:
    for dims, at_edge in (((8, 12, 16), True), ((48, 64, 96), True), (range(8, 65, 4), False)):
        _, draws = certain(gain_law(1.0))
        widths = {family: plain_widths(family, tuple(dims)) for family in FAMILIES}
        (found,) = law_multipliers(draws.fitted, draws, widths, "dense", np.array([4e11]), TRAINED)
        assert found.at_edge == at_edge


def test_the_interval_holds_the_truth_and_widens_with_noise() -> None:
    sizes = []
    for noise in (0.0, 0.003, 0.03):
        rows = law_rows(gain_law(1.5), noise=noise, seeds=3)
        law = fit_form(SharedExponents(), runs_of(rows, architecture(SHAPE)))
        widths = {family: Widths.of(SHAPE, family, (8, 16, 24, 32, 40), VOCAB, CONTEXT) for family in FAMILIES}
        trained = dict.fromkeys(FAMILIES, (1e10, 1e11))
        (exact,) = law_multipliers(
            known_law(gain_law(1.5), RUNS), certain(gain_law(1.5))[1], widths, "dense", np.array([3e10]), trained
        )
        (found,) = law_multipliers(law, law.bootstrap(100), widths, "dense", np.array([3e10]), trained)
        assert found.estimate.low is not None
        assert found.estimate.high is not None
        slack = 1e-3 if noise == 0 else 0.0
        assert found.estimate.low - slack <= exact.estimate.value <= found.estimate.high + slack
        sizes.append(found.estimate.high / found.estimate.low)
    assert 1 <= sizes[0] < 1.01 < sizes[1] < sizes[2]


def test_the_laws_own_losses_come_first_and_then_every_draws() -> None:
    law = known_law(LAW, RUNS)
    worse = {**LAW, "E": 2.2}
    draws = FormBootstrap(law, np.stack([law.vector, law.form.theta(worse)]), 0)
    losses, dims = best_losses(law, draws, WIDTHS["moe"], BUDGETS)
    np.testing.assert_allclose(losses[2], losses[0] + 1.0)
    np.testing.assert_allclose(losses[1], losses[0])
    assert dims.shape == (3,)


def selected(*forms: Form) -> SelectionTable:
    return SelectionTable(tuple(Selection(form, 5, 0.1, Score(0.1, 0.0, ()), None, "") for form in forms))


def test_a_law_that_knows_no_families_is_passed_over_however_well_it_predicts() -> None:
    law = best_law(selected(Chinchilla(), SharedExponents()), RUNS, WIDTHS)
    assert isinstance(law.form, SharedExponents)
    with pytest.raises(ValueError, match="tells not all families apart"):
        best_law(selected(Chinchilla()), RUNS, WIDTHS)


def test_laws_of_mixtures_tell_apart_what_differs_in_what_they_read() -> None:
    constants = {
        "a": 16.0, "alpha": 0.4, "b": 50.0, "beta": 0.3, "c": 0.4, "lambda": -0.2, "d": 2.0, "delta": 0.2, "gamma": 0.2,
        "e": 0.9,
    }  # fmt: skip
    law = known_law(constants, RUNS, SparsitySurface())
    assert tells_apart(law, WIDTHS)
    assert not tells_apart(law, {**WIDTHS, "moe+window": WIDTHS["moe"]})
    joint = {
        "a": 35.9, "alpha": -0.19, "delta": -0.23, "gamma": 0.01, "b": 36.0, "beta": -0.18, "omega": 0.55,
        "zeta": -0.03, "E_start": 2.1, "E_max": 290.0, "c": 1.4,
    }  # fmt: skip
    by_experts = known_law(joint, RUNS, JointMoE())
    assert tells_apart(by_experts, WIDTHS)
    assert not tells_apart(by_experts, {**WIDTHS, "finer": replace(WIDTHS["moe"], architecture=(4.0, 8.0))})
    own = known_law(LAW, Runs.of([1e5, 1e5], 1e6, 1.0, family=list(FAMILIES)))
    assert tells_apart(own, {**WIDTHS, "moe": WIDTHS["dense"]})
