"""A dense family and mixtures whose law is known: their widths, rows that follow it, and the law without a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from experiment_script import ROOT
from synthetic_study import run_result

from toolkit.compute import cost
from toolkit.scaling.laws import FittedForm, Form, Runs, SharedExponents, runs_of
from toolkit.scaling.plan import Family, ModelShape
from toolkit.scaling.results import RunResult
from toolkit.scaling.sparsity.cli import read_sparsity
from toolkit.scaling.sparsity.study import SparsityStudy
from toolkit.scaling.sparsity.widths import Widths, architecture

VOCAB, CONTEXT = 64, 16
FAMILIES = ("dense", "moe")
SHAPE = ModelShape((Family("dense"), Family("moe", num_experts=8)), layers=2, head_dim=8)
LAW = {"E": 1.2, "A[dense]": 14.0, "A[moe]": 11.0, "B[dense]": 30.0, "B[moe]": 26.0, "alpha": 0.34, "beta": 0.28}
BUDGETS, DIMS = (1e10, 3e10, 1e11), (8, 16, 24, 32)


PRESETS = ROOT / "experiments" / "presets"


def arguments(text: Path, out: Path) -> list[str]:
    """A study of two families that takes seconds: a search, three budgets, and a fourth to be predicted."""
    settings = {
        "corpus.paths": f"[{text}]",
        "corpus.validation_share": "0.3",
        "cache": str(text.parent / "cache"),
        "training.context": "16",
        "training.batch_size": "8",
        "training.log_every": "50",
        "training.precision": "32-true",
        "validation_windows": "20",
        "model.arms": "[{name: dense}, {name: moe, num_experts: 4}]",
        "model.layers": "1",
        "model.head_dim": "8",
        "grid.budgets": "[{flops: 4e8, dims: [8, 12, 16]}, {flops: 6e8, dims: [8, 12, 16]}, "
        "{flops: 9e8, dims: [8, 12, 16]}]",
        "grid.seeds": "1",
        "grid.recipe": "{transfer: mup, base_dim: 12, learning_rate: 0.016, "
        "search: {flops: 4e8, factors: [0.5, 1, 2]}}",
        "laws.dims": "[8, 16]",
        "next_budget": "{flops: 1.4e9}",
        "out": str(out),
        "workers": "1",
    }
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def read(text: Path, out: Path, *more: str) -> SparsityStudy:
    """That study, with more arguments."""
    return read_sparsity([*arguments(text, out), *more], PRESETS, "", out)[0]


def known_law(constants: dict[str, float], runs: Runs, form: Form | None = None) -> FittedForm:
    """The law of these constants, as a fit without error would give it."""
    form = form or SharedExponents(FAMILIES)
    return FittedForm(form, runs, form.theta(constants), "squares", 0.0, None, 1e-3)


def gain_law(gain: float) -> dict[str, float]:
    """A law by which a mixture of any size has, on any compute, the dense loss of ``gain`` times as much."""
    return {**LAW, "A[moe]": LAW["A[dense]"], "B[moe]": LAW["B[dense]"] * gain ** -LAW["beta"]}


def plain_widths(family: str, dims: Sequence[int] = tuple(range(8, 65, 4))) -> Widths:
    """Models of 24 dim^2 parameters for one token, 6 FLOPs for each; a mixture holds as many again three times."""
    active = 24.0 * np.square(np.array(dims, dtype=np.float64))
    total, made = (active, (1.0, 1.0)) if family == "dense" else (4 * active, (4.0, 2.0))
    return Widths(family, tuple(dims), active, total, 6 * active, made)


def law_rows(
    constants: dict[str, float] = LAW,
    *,
    seeds: int = 1,
    noise: float = 0.0,
    budgets: Sequence[float] = BUDGETS,
    dims: Sequence[int] = DIMS,
    seed: int = 0,
) -> list[RunResult]:
    """A grid of ``SHAPE``'s models; losses are the law's times lognormal noise."""
    rows = [
        _row(family, budget, dim, number)
        for number in range(seeds)
        for budget in budgets
        for dim in dims
        for family in FAMILIES
    ]
    losses = SharedExponents(FAMILIES).predict(constants, runs_of(rows, architecture(SHAPE)))
    errors = noise * np.random.default_rng(seed).standard_normal(len(rows))
    return [
        replace(row, bits_per_byte=loss) for row, loss in zip(rows, (losses * np.exp(errors)).tolist(), strict=True)
    ]


def _row(family: str, budget: float, dim: int, seed: int) -> RunResult:
    price = cost(SHAPE.decoder(family, dim, VOCAB), CONTEXT)
    return replace(
        run_result(family, budget, dim, seed, 1.0, seconds=budget / 1e10),
        parameters=price.total_parameters,
        active_parameters=price.total_active_parameters,
        embedding_parameters=price.parameters["embedding"],
        tokens=round(budget / price.training_flops["exact"]),
        training_bytes=3_000_000,
    )
