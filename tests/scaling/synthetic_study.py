"""Made-up runs whose truth is known, for the tests of the analysis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from toolkit.scaling.results import RunResult

DIMS = (24, 32, 48, 64, 96, 128)
DENSE_BUDGETS = (3e11, 1e12, 3e12)


def run_result(
    family: str, budget: float, dim: int, seed: int, loss: float, *, seconds: float = 10.0, size: int = 0
) -> RunResult:
    """A row with the fields the analysis reads, the rest plausible."""
    return RunResult(
        run=f"{family}-dim{dim}-flops{budget:.3g}-seed{seed}",
        family=family,
        budget=budget,
        dim=dim,
        seed=seed,
        parameters=2 * (size or 24 * dim**2),
        active_parameters=size or 24 * dim**2,
        steps=1000,
        tokens=10**6,
        epochs=0.1,
        flops_planned=budget,
        flops_spent=budget,
        flops_palm=budget,
        flops_hardware=budget,
        learning_rate=1e-3,
        bits_per_byte=loss,
        train_loss=loss * math.log(2),
        seconds=seconds,
        seconds_wall=seconds,
        dropped_share=0.0,
        max_violation=math.nan if family == "dense" else 0.2,
        token_entropy=math.nan if family == "dense" else 1.0,
    )


def surface(size: float, flops: float) -> float:
    """A Chinchilla surface on the scale of the demo: bits per byte, optimum near dim 64 at 1e12."""
    tokens = flops / (6 * size)
    return 1.0 + 14 / size**0.3 + 22 / tokens**0.3


def study(
    gain: float = 1.5,
    slowdown: float = 2.0,
    *,
    seeds: int = 1,
    noise: float = 0.0,
    dense_budgets: Sequence[float] = DENSE_BUDGETS,
    sparse_budgets: Sequence[float] = (3e11, 1e12),
    dims: Sequence[int] = DIMS,
    rng: np.random.Generator | None = None,
) -> list[RunResult]:
    """A sparse family that at C FLOPs has the dense loss of gain x C, its steps `slowdown` x as long."""
    rng = rng or np.random.default_rng(0)
    rows = []
    for family, budgets in (("dense", dense_budgets), ("moe", sparse_budgets)):
        sparse = family == "moe"
        for budget in budgets:
            for dim in dims:
                size = 24 * dim**2
                # a wider model uses the machine better, so that the clock's optimum is not the FLOPs'
                seconds = budget / 1e10 * (dim / 64) ** -0.3 * (slowdown if sparse else 1)
                loss = surface(size, budget * (gain if sparse else 1))
                rows += [
                    run_result(family, budget, dim, seed, loss + noise * rng.standard_normal(), seconds=seconds)
                    for seed in range(seeds)
                ]
    return rows
