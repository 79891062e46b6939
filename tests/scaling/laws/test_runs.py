"""The table of runs, and rows of a study turned into it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import run_result

from toolkit.scaling.laws import Runs, runs_of
from toolkit.scaling.results import RunResult


def test_what_is_not_given_is_that_of_a_dense_model() -> None:
    runs = Runs.of([1e6, 2e6], [1e9, 1e9], [3.0, 2.9])
    np.testing.assert_array_equal(runs.total, runs.active)
    np.testing.assert_array_equal(runs.sparsity, [0.0, 0.0])
    np.testing.assert_allclose(runs.flops, [6e15, 1.2e16])
    assert (runs.families, len(set(runs.group)), len(runs)) == (("dense",), 2, 2)


def test_where_keeps_every_columns_runs() -> None:
    runs = Runs.of([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0], family=["b", "a", "b"])
    kept = runs.where(runs.family == "b")
    assert (kept.active.tolist(), kept.loss.tolist(), kept.families) == ([1.0, 3.0], [7.0, 9.0], ("b",))
    assert kept.group.tolist() == runs.group[[0, 2]].tolist()


def test_flops_within_two_per_cent_of_their_neighbours_are_one_budget() -> None:
    flops = [1.02e9, 4e9, 1.01e9, 1e9, 4.2e9]  # the ends of the first three are 2% apart, their neighbours 1%
    runs = Runs.of([1.0] * 5, [1.0] * 5, [1.0] * 5, flops=flops)
    np.testing.assert_allclose(runs.budgets, [1.01e9, 4e9, 1.01e9, 1.01e9, 4.2e9])


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"tokens": [1.0]}, "tokens.shape"),
        ({"loss": [1.0, math.nan]}, r"loss\[1\]=nan: it must be positive and finite"),
        ({"loss": [1.0, 0.0]}, r"loss\[1\]=0.0"),
        ({"total": [0.5, 2.0]}, r"total\[0\]=0.5: it must be at least active\[0\]=1"),
        ({"family": ["a"]}, "family.shape"),
        ({"active": [], "tokens": 1.0, "loss": 1.0}, "active.shape"),
        ({"active": [[1.0]], "tokens": 1.0, "loss": 1.0}, "active.shape"),
    ],
)
def test_bad_columns_are_named(columns: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Runs.of(**{"active": [1.0, 2.0], "tokens": [1.0, 1.0], "loss": [1.0, 1.0], **columns})  # type: ignore[arg-type]


def study() -> list[RunResult]:
    """A tied embedding of 100 parameters; the mixture leaves 700 unused."""
    counts = {"embedding_parameters": 100}
    dense = replace(run_result("dense", 1e12, 32, 0, 2.0), parameters=1000, active_parameters=1000, **counts)
    moe = replace(run_result("moe", 1e12, 32, 1, 1.9), parameters=1700, active_parameters=1000, **counts)
    return [dense, moe, replace(moe, seed=2, run="other"), replace(moe, dim=64)]


def test_rows_become_runs() -> None:
    runs = runs_of(study(), {"dense": (1, 1), "moe": (8, 2)}, "active")
    np.testing.assert_array_equal(runs.active, [900] * 4)
    np.testing.assert_array_equal(runs.total, [900, 1600, 1600, 1600])
    np.testing.assert_array_equal(runs.experts, [1, 8, 8, 8])
    np.testing.assert_array_equal(runs.granularity, [1, 2, 2, 2])
    np.testing.assert_array_equal(runs.loss, [2.0, 1.9, 1.9, 1.9])
    np.testing.assert_array_equal(runs.flops, [1e12] * 4)
    assert runs.group[1] == runs.group[2] != runs.group[3]  # a cell's seeds, another size


def test_runs_that_share_a_trunk_are_one_group() -> None:
    """Of a branched study all budgets of a family's width, and no two widths or families."""
    cells = [(family, budget, dim) for family in ("dense", "moe") for budget in (1e12, 2e12) for dim in (32, 64)]
    rows = [run_result(*cell, seed, 2.0) for cell in cells for seed in range(2)]
    experts = {"dense": (1.0, 1.0), "moe": (8.0, 1.0)}
    alone, branched = (runs_of(rows, experts, branched=each).group.tolist() for each in (False, True))
    assert [alone.index(group) for group in alone] == [2 * (at // 2) for at in range(16)]
    widths = [(row.family, row.dim) for row in rows]
    assert [branched.index(group) for group in branched] == [widths.index(width) for width in widths]


@pytest.mark.parametrize("convention", ["active", "active_with_head", "active_total"])
def test_a_dense_model_is_never_sparse(convention: str) -> None:
    sparsity = runs_of(study(), {"dense": (1, 1), "moe": (8, 2)}, convention).sparsity
    assert sparsity[0] == 0.0
    assert sparsity[1] > 0.4


def test_what_cannot_be_turned_is_named() -> None:
    with pytest.raises(ValueError, match="nothing of moe"):
        runs_of(study(), {"dense": (1, 1)})
    with pytest.raises(ValueError, match="convention='total'"):
        runs_of(study(), {"dense": (1, 1), "moe": (8, 2)}, "total")
    with pytest.raises(ValueError, match="rows=0"):
        runs_of([], {})
