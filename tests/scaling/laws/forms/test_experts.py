"""Laws of mixtures against their formulas, and Clark's on the published losses."""

from __future__ import annotations

import csv
import gzip
from dataclasses import replace

import numpy as np
import pytest
from synthetic_laws import DATA, KNOWN, table

from toolkit.scaling.laws import Clark, Granularity, JointMoE, Runs, SparsitySurface, fit_form

CONSTANTS = {form.title: constants for form, constants in KNOWN}
RUNS = table()


def saturated(experts: np.ndarray, start: float, maximum: float) -> np.ndarray:
    """Clark et al.'s Ehat, as it is printed."""
    return 1 / (1 / (experts - 1 + 1 / (1 / start - 1 / maximum)) + 1 / maximum)


def test_clark() -> None:
    k = CONSTANTS["Clark"]
    n, e = np.log10(RUNS.active), np.log10(saturated(RUNS.experts, k["E_start"], k["E_max"]))
    expected = 10 ** (k["a"] * n + k["b"] * e + k["c"] * n * e + k["d"])
    np.testing.assert_allclose(Clark().predict(k, RUNS), expected, rtol=1e-12)


def test_granularity() -> None:
    k, g = CONSTANTS["granularity"], RUNS.granularity
    expected = (
        k["c"] + (k["g"] / g ** k["gamma"] + k["a"]) / RUNS.total ** k["alpha"] + k["b"] / RUNS.tokens ** k["beta"]
    )
    np.testing.assert_allclose(Granularity().predict(k, RUNS), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("experts", "m", "mu", "n", "nu"),
    [
        (1, 30.3640, -0.1817, 53.9838, -0.1965),
        (2, 27.7982, -0.1780, 66.8401, -0.2065),
        (4, 24.8462, -0.1731, 87.7022, -0.2192),
        (8, 21.8330, -0.1676, 119.9126, -0.2338),
        (16, 19.0159, -0.1617, 167.5073, -0.2494),
        (32, 16.5424, -0.1557, 234.6726, -0.2652),
    ],
)
def test_joint_moe(experts: float, m: float, mu: float, n: float, nu: float) -> None:
    """Ludziejewski et al. 2025, Table 4: for each number of experts the law is m N^mu + n D^nu + c, by their digits."""
    k = CONSTANTS["joint MoE"]
    active, tokens = (grid.ravel() for grid in np.meshgrid([1e8, 1e9, 1e10], [1e9, 1e10, 1e11]))
    runs = Runs.of(active, tokens, 1.0, experts=experts, total=active * experts)
    published = m * active**mu + n * tokens**nu + 1.3637
    np.testing.assert_allclose(JointMoE().predict(k, runs), published, rtol=1e-3)


def test_sparsity() -> None:
    k, n, s = CONSTANTS["sparsity"], RUNS.total, 1 - RUNS.active / RUNS.total
    expected = k["a"] / n ** k["alpha"] + k["b"] / RUNS.tokens ** k["beta"] + k["c"] / (1 - s) ** k["lambda"]
    expected += k["d"] / ((1 - s) ** k["delta"] * n ** k["gamma"]) + k["e"]
    np.testing.assert_allclose(SparsitySurface().predict(k, RUNS), expected, rtol=1e-12)


def test_a_dense_model_of_the_effective_size_has_the_same_loss() -> None:
    constants = CONSTANTS["Clark"]
    sizes = Clark().effective_parameters(constants, RUNS)
    dense = replace(RUNS, active=sizes, total=sizes, experts=np.ones(len(RUNS)))
    np.testing.assert_allclose(Clark().predict(constants, dense), Clark().predict(constants, RUNS), rtol=1e-12)
    alone = RUNS.experts == 1
    np.testing.assert_allclose(sizes[alone], RUNS.active[alone], rtol=1e-9)
    assert (sizes > RUNS.active * (1 - 1e-9)).all()


def test_no_effective_size_where_dense_models_do_not_improve() -> None:
    with pytest.raises(ValueError, match="a \\+ c log10 E_start"):
        Clark().effective_parameters({**CONSTANTS["Clark"], "a": 0.1}, RUNS)


@pytest.fixture(scope="module")
def routed() -> list[dict[str, str]]:
    """The last step of every run with one expert for each token, in every other layer."""
    if not (DATA / "clark2022_curves.csv.gz").exists():
        pytest.skip("the published curves are not here")
    last: dict[str, dict[str, str]] = {}
    with gzip.open(DATA / "clark2022_curves.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            if (row["routing_frequency"], row["k"], row["seed"]) == ("0.5", "1", "42"):
                earlier = last.get(row["hyper_id"], row)
                last[row["hyper_id"]] = max(earlier, row, key=lambda each: int(each["step"]))
    return list(last.values())


@pytest.mark.parametrize(
    ("router", "a", "b", "c", "d"),
    [
        ("S-Base", -0.082, -0.108, 0.009, 1.104),
        ("RL-R", -0.083, -0.126, 0.012, 1.111),
        ("Hash", -0.087, -0.136, 0.012, 1.157),
    ],
)
def test_clarks_curves_give_the_published_constants(
    routed: list[dict[str, str]], router: str, a: float, b: float, c: float, d: float
) -> None:
    """Clark et al. 2022, Table 3; they fit by other steps and weights, and say three digits."""
    rows = [row for row in routed if row["router_type"] in (router, "Dense")]
    active, loss, experts = (
        np.array([float(row[name]) for row in rows])
        for name in ("dense_parameter_count", "loss_validation", "num_experts")
    )
    fitted = fit_form(Clark(), Runs.of(active, 130e9, loss, experts=experts, family=router))
    assert fitted.theta["a"] == pytest.approx(a, abs=0.002)
    assert fitted.theta["b"] == pytest.approx(b, abs=0.012)
    assert fitted.theta["c"] == pytest.approx(c, abs=0.0015)
    assert fitted.theta["d"] == pytest.approx(d, abs=0.012)
    assert np.sqrt(np.mean(fitted.residuals**2)) < 0.008
    sparse = Runs.of([25e6, 1.3e9], 130e9, 1.0, experts=64)
    gains = fitted.form.effective_parameters(fitted.theta, sparse) / sparse.active  # type: ignore[attr-defined]
    assert gains[0] > gains[1] > 1  # routing is worth less to larger models, their main finding
