"""Made-up runs of many families whose law is known, and each form with constants of its papers' sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

import toolkit
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
)

DATA = Path(toolkit.__file__).parents[2] / "shared" / "data"
FAMILIES = ("dense", "moe", "fine")
SHARED = {"E": 1.69, "alpha": 0.34, "beta": 0.28}
OWN = {"A": (406.4, 300.0, 260.0), "B": (410.7, 380.0, 390.0)}
OWN_EXPONENTS = {"alpha": (0.34, 0.36, 0.31), "beta": (0.28, 0.27, 0.3)}


def of_families(numbers: dict[str, tuple[float, ...]]) -> dict[str, float]:
    return {
        f"{name}[{family}]": value for name, own in numbers.items() for family, value in zip(FAMILIES, own, strict=True)
    }


KNOWN: tuple[tuple[Form, dict[str, float]], ...] = (
    (Chinchilla(), {"A": 406.4, "B": 410.7, **SHARED}),
    (OneExponent(), {"E": 1.86, "A": 173.8, "B": 303.4, "alpha": 0.276}),
    (SharedIrreducible(FAMILIES), {"E": 1.69, **of_families(OWN), **of_families(OWN_EXPONENTS)}),
    (SharedExponents(FAMILIES), {**SHARED, **of_families(OWN)}),
    (Clark(), {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "E_start": 1.847, "E_max": 314.478}),
    (Granularity(), {"a": 18.1, "alpha": 0.115, "b": 30.8, "beta": 0.147, "g": 2.1, "gamma": 0.58, "c": 0.47}),
    (
        JointMoE(),
        {
            "a": 35.91, "alpha": -0.1889, "delta": -0.2285, "gamma": 0.0098, "b": 35.98, "beta": -0.1775,
            "omega": 0.5529, "zeta": -0.0259, "E_start": 2.0732, "E_max": 290.4521, "c": 1.3637,
        },
    ),
    (
        SparsitySurface(),
        {
            "a": 16612.5, "alpha": 0.5962, "b": 5455.67, "beta": 0.3954, "c": 0.4598, "lambda": -0.1666, "d": 17.26,
            "delta": 0.1603, "gamma": 0.1595, "e": 0.94,
        },
    ),
)  # fmt: skip
TITLES = [form.title for form, _ in KNOWN]


def table(count: int = 90, seed: int = 0) -> Runs:
    """Runs of dense models, mixtures and fine-grained mixtures; losses are all 1."""
    rng = np.random.default_rng(seed)
    family = np.array(FAMILIES)[np.arange(count) % 3]
    experts = np.where(family == "dense", 1, rng.choice([4, 8, 16, 64], count))
    granularity = np.where(family == "fine", rng.choice([2, 4, 8], count), 1)
    active, tokens = np.exp(rng.uniform(16, 22, count)), np.exp(rng.uniform(20, 25, count))
    total = active * ((1 + 2 * experts) / 3)
    return Runs.of(active, tokens, 1.0, experts=experts, granularity=granularity, total=total, family=family.tolist())


def measured(form: Form, constants: dict[str, float], noise: float = 0.0, runs: Runs | None = None) -> Runs:
    """The runs with the losses that the law gives, times lognormal noise."""
    runs = table() if runs is None else runs
    losses = form.predict(constants, runs)
    return replace(runs, loss=losses * np.exp(noise * np.random.default_rng(1).standard_normal(len(runs))))
