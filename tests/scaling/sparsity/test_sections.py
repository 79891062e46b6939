"""Sections of the report: tables hold the objects' own numbers, and what failed or is missing is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sparsity_cases import CONTEXT, FAMILIES, LAW, SHAPE, VOCAB, law_rows
from synthetic_study import run_result, study

from toolkit.scaling.claims import number, times
from toolkit.scaling.laws import runs_of, select
from toolkit.scaling.laws.exponents import exponents_by_convention
from toolkit.scaling.multiplier import Estimate
from toolkit.scaling.sparsity import prediction, sections
from toolkit.scaling.sparsity.costs import FamilyCost, Projection, family_costs
from toolkit.scaling.sparsity.frontier import best_law, law_multipliers
from toolkit.scaling.sparsity.prediction import Prediction
from toolkit.scaling.sparsity.search import FoundRate
from toolkit.scaling.sparsity.study import FORMS, Laws
from toolkit.scaling.sparsity.widths import architecture, by_family

PREDICTED = Prediction("moe", 3e11, 32, 12345.0, 45678.0, 1.5e7, 2.0, 1.9, 2.1, False, "a law")


def cells(parts: list[str]) -> list[list[str]]:
    """The body of the last table among the parts."""
    (*_, table) = (part for part in parts if part.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.fixture(scope="module")
def laws() -> Laws:
    runs = runs_of(law_rows(noise=0.003, seeds=2), architecture(SHAPE))
    widths = by_family(SHAPE, FAMILIES, range(8, 41, 8), VOCAB, CONTEXT)
    selection = select(FORMS, runs)
    best = best_law(selection, runs, widths)
    draws = best.bootstrap(30)
    trained = dict.fromkeys(FAMILIES, (1e10, 1e11))
    found = law_multipliers(best, draws, widths, "dense", np.array([1e10, 1e11, 1e12]), trained)
    return Laws(runs, selection, best, draws, tuple(found))


def test_the_law_its_constants_and_every_multiplier_are_told(laws: Laws) -> None:
    parts = sections.law_section(laws, "", "dense")
    text = "\n".join(parts)
    for form in FORMS:
        assert f"| {form.title} |" in text  # those that could not be fitted too
    assert f"families apart, {laws.best.form.title} (" in text
    for name, value in laws.best.theta.items():
        assert f"{name} = {value:.4g}".replace("e+", "e") in text
    assert "over 30 resamples" in text
    assert len(laws.multipliers) == 3
    for entry, row in zip(laws.multipliers, cells(parts), strict=True):
        assert row[:2] == [f"`{entry.family}`", number(entry.budget)]
        assert row[2] == str(entry.dim) + (" (edge)" if entry.at_edge else "")
        assert row[3:5] == [f"{entry.loss:.3f}", times(entry.estimate)]
        assert ("extrapolated" in row[5]) == (entry.estimate.extrapolated or entry.estimate.interval_extrapolated)
    assert laws.multipliers[-1].estimate.extrapolated


def test_without_a_law_the_reason_is_told() -> None:
    assert sections.law_section(None, "runs=3: it must be more", "dense") == [
        "## By a law of all runs",
        "No law was fitted: runs=3: it must be more.",
    ]


def test_predictions_stand_beside_what_was_measured() -> None:
    tests = [
        prediction.Tested(PREDICTED, {"a": 2.04, "b": 2.06}),
        prediction.Tested(Prediction("dense", 3e11, 8, 1.0, 1.0, 1.0, 2.0, 1.9, 2.1, True, "a law"), {"c": 2.2}),
        prediction.Tested(PREDICTED, {"d": 2.0}, ("e",)),
        prediction.Tested(PREDICTED, {}, ("f", "g")),
    ]
    parts = sections.prediction_section(tests, True, {"moe": "8 experts"})
    assert "For 1 of 4 families all runs lie within it." in parts[1]
    assert "a law (a law) chose" in parts[1]
    held, failed, half, gone = cells(parts)
    assert held == [
        *("`moe`", "3e11", "32", "12,345", "45,678", "1.5e7"),
        *("2.000 (1.900 to 2.100)", "2.040, 2.060", "+2.5%", "yes", "8 experts"),
    ]
    assert failed[2] == "8 (edge)"
    assert failed[-4:-1] == ["2.200", "+10.0%", "**no**"]
    assert half[-4:-1] == ["2.000, diverged", "+0.0%", "**no**"]
    assert gone[-4:-1] == ["diverged, diverged", "", "**no**"]


def test_no_prediction_is_told_where_one_was_asked_for() -> None:
    assert sections.prediction_section([], False) == []
    assert sections.prediction_section([], True)[1] == "None was made: there is no law to make it."


def test_costs_are_those_of_the_objects() -> None:
    costs = family_costs(study(seeds=2), "dense")
    parts = sections.cost_section(costs, "dense")
    assert "at 1e12 FLOPs" in parts[1]
    for entry, row in zip(costs, cells(parts), strict=True):
        assert row[:5] == [
            f"`{entry.family}`", str(entry.best.dim), f"{entry.best.loss:.3f}", f"{entry.active:,}", f"{entry.total:,}"
        ]  # fmt: skip
        wanted = (entry.same_loss_flops, entry.same_loss_seconds)
        assert row[7:9] == ["none" if value is None else f"{value:.2f}" for value in wanted]
    nowhere = FamilyCost("x", costs[0].best, 1, 2, 3_000_000, 1.0, None, None, None)
    assert cells(sections.cost_section([nowhere], "dense"))[0][5:] == ["3.0", "1", "none", "none", "none"]
    assert sections.cost_section([], "dense") == []


def test_a_projection_is_never_called_measured() -> None:
    measured, charged = Estimate(1.5, 1.2, 1.8, False, False), Estimate(1.25, 1.0, 1.5, False, False)
    parts = sections.projection_section(
        [Projection("full", 256, 4, 0.0123, 1.0, None, None), Projection("moe", 256, 4, 0.02, 1.2, measured, charged)],
        "H100",
        "full",
    )
    assert "Projected, not measured" in parts[1]
    assert "time of a FLOP / `full`'s" in parts[2]
    assert cells(parts) == [
        ["`full`", "256 x 4", "12.3", "1.00", "", ""],
        ["`moe`", "256 x 4", "20.0", "1.20", "1.50 (1.20 to 1.80)", "1.25 (1.00 to 1.50)"],
    ]
    assert sections.projection_section([], None, "full") == []


def test_rates_tried_and_taken_are_told_and_what_they_cost() -> None:
    tried = (0.0025, 0.01, 0.04)
    rates = {
        "dense": FoundRate("dense", 0.0123, tried, (2.2, 2.0, 2.1), True, False),
        "moe": FoundRate("moe", 0.0025, tried, (2.0, 2.1, math.inf), False, True),
    }
    searched = [run_result(family, 2e9, 16, 0, 2.0) for family in rates for _ in tried]
    parts = sections.search_section(rates, searched, 16)
    assert "6 runs, 1.2e10 FLOPs in all" in parts[1]
    assert "family | 0.0025 | 0.01 | 0.04 | taken" in parts[2]
    assert cells(parts) == [
        ["`dense`", "2.200", "2.000", "2.100", "0.0123"],
        ["`moe`", "2.000", "2.100", "diverged", "0.0025 (at the edge)"],
    ]
    assert sections.search_section({}, [], 16) == []


def test_exponents_are_those_of_each_convention_or_the_reason_is_told() -> None:
    rows = law_rows(noise=0.002)
    found = exponents_by_convention([row for row in rows if row.family == "dense"], "dense")
    parts = sections.exponents_section(found, "", "dense")
    for entry, row in zip(found, cells([*parts[:-1]]), strict=True):
        assert row[0] == f"`{entry.convention}`"
        assert row[1] == f"{entry.fitted.theta['E']:.3f}"
        assert row[2] == f"{entry.alpha.value:.3f} ({entry.alpha.low:.3f} to {entry.alpha.high:.3f})"
        assert row[4].startswith(f"{entry.exponent.value:.3f} (")
    assert LAW["alpha"] == pytest.approx(found[1].alpha.value, abs=0.15)
    assert sections.exponents_section((), "too few", "dense")[1] == "Not fitted: too few."


def test_the_limit_of_exponents_tells_how_far_they_move_and_how_sure_they_are() -> None:
    found = exponents_by_convention([row for row in law_rows(noise=0.002) if row.family == "dense"], "dense")
    limit, values = sections.exponents_limit(found), [each.exponent.value for each in found]
    assert f"{min(values):.3f} (" in limit
    assert f"{max(values):.3f} (" in limit
    assert f"span {min(each.exponent.low for each in found):.3f}" in limit
