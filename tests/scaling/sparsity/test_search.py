"""The search for rates: a known parabola's vertex is found, edges are told, what diverged cannot win."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from sparsity_cases import CONTEXT, FAMILIES, SHAPE, VOCAB
from synthetic_study import run_result

from toolkit.scaling.plan import TOLERANCE, Grid, IsoFLOP, PlannedRun, Recipe, Search, plan_isoflop
from toolkit.scaling.results import RunResult
from toolkit.scaling.sparsity.search import FoundRate, found_rates, plan_search, rates_tried
from toolkit.training import TrainingConfig

BASE = TrainingConfig(steps=1, context=CONTEXT, batch_size=4, precision="32-true")
FACTORS = (0.25, 0.5, 1.0, 3.0, 4.0)


def recipe(seeds: int = 1, factors: tuple[float, ...] = FACTORS) -> Recipe:
    return Recipe(learning_rate=0.01, base_dim=16, transfer="mup", search=Search(3e8, factors, seeds))


def plan(recipe: Recipe) -> list[PlannedRun]:
    return plan_search(recipe, SHAPE, FAMILIES, VOCAB, BASE)


def rows(runs: list[PlannedRun], loss: Callable[[float, PlannedRun], float]) -> list[RunResult]:
    """A finished run for each, with the loss of its rate."""
    return [
        replace(
            run_result(run.family, run.budget, run.dim, run.seed, loss(run.training.learning_rate, run)), run=run.name
        )
        for run in runs
    ]


def parabola(best: float) -> Callable[[float, PlannedRun], float]:
    return lambda rate, run: 2.0 + 0.3 * math.log(rate / best) ** 2


def found(loss: Callable[[float, PlannedRun], float], made: Recipe | None = None) -> dict[str, FoundRate]:
    made = made or recipe()
    return found_rates(made, plan(made), rows(plan(made), loss))


def test_every_family_is_tried_at_every_rate_and_spends_the_budget() -> None:
    runs = plan(recipe(seeds=2))
    cells = {(run.family, round(run.training.learning_rate, 9), run.seed) for run in runs}
    rates = [factor * 0.01 for factor in FACTORS]
    assert cells == {(family, round(rate, 9), seed) for family in FAMILIES for rate in rates for seed in (0, 1)}
    assert len(runs) == len(cells)
    assert rates_tried(recipe()) == pytest.approx(rates)
    for run in runs:
        assert abs(run.flops["exact"] / 3e8 - 1) <= TOLERANCE
        assert run.dim == 16
        assert run.model.mup_base_dim == 16


def test_its_runs_have_names_of_their_own_beside_the_grids_same_cell() -> None:
    made = recipe(seeds=2)
    grid = plan_isoflop(Grid((IsoFLOP(3e8, (16,)),), seeds=2, recipe=made), SHAPE, VOCAB, BASE)
    names = [run.name for run in [*plan(made), *grid]]
    assert len(set(names)) == len(names) == 2 * 2 * (len(FACTORS) + 1)
    assert "dense-dim16-flops3e8-rate0.0025-seed0" in names


def test_no_search_no_runs() -> None:
    assert plan(Recipe()) == []
    assert rates_tried(Recipe()) == []


@pytest.mark.parametrize("best", [0.006, 0.01, 0.02])
def test_a_parabolas_vertex_is_found_whatever_lies_between_the_rates(best: float) -> None:
    for family, each in found(parabola(best)).items():
        assert each.family == family
        assert each.rate == pytest.approx(best, rel=1e-9)
        assert (each.vertex, each.at_edge) == (True, False)
        assert each.tried == tuple(rates_tried(recipe()))
        assert each.losses == pytest.approx([2.0 + 0.3 * math.log(rate / best) ** 2 for rate in each.tried])


def test_every_family_finds_its_own() -> None:
    bests = {"dense": 0.006, "moe": 0.02}
    rates = found(lambda rate, run: parabola(bests[run.family])(rate, run))
    assert {family: each.rate for family, each in rates.items()} == pytest.approx(bests)


@pytest.mark.parametrize(("best", "taken"), [(0.0001, 0.0025), (1.0, 0.04)])
def test_the_best_at_an_end_is_taken_as_it_is_and_told(best: float, taken: float) -> None:
    for each in found(parabola(best)).values():
        assert (each.rate, each.vertex, each.at_edge) == (pytest.approx(taken), False, True)


def test_seeds_are_averaged() -> None:
    def loss(rate: float, run: PlannedRun) -> float:
        return parabola(0.01)(rate, run) + (0.5 if run.seed else -0.5)

    for each in found(loss, recipe(seeds=2)).values():
        assert each.rate == pytest.approx(0.01)
        assert min(each.losses) == pytest.approx(2.0)


def test_a_rate_that_diverged_is_skipped_and_so_is_the_parabola_beside_it() -> None:
    def loss(rate: float, run: PlannedRun) -> float:
        return math.nan if rate > 0.02 else parabola(0.02)(rate, run)

    for each in found(loss).values():
        assert each.losses[3:] == (math.inf, math.inf)
        assert (each.rate, each.vertex, each.at_edge) == (pytest.approx(0.01), False, False)


def test_a_seed_that_diverged_is_left_out_of_its_rates_mean() -> None:
    def loss(rate: float, run: PlannedRun) -> float:
        return math.nan if run.seed and rate > 0.02 else parabola(0.01)(rate, run)

    for each in found(loss, recipe(seeds=2)).values():
        assert all(math.isfinite(value) for value in each.losses)


def test_equal_losses_leave_the_lowest_tried() -> None:
    for each in found(lambda rate, run: 2.0 if 0.004 < rate < 0.02 else 3.0).values():
        assert each.rate == pytest.approx(math.sqrt(0.005 * 0.01))  # of the first and its neighbours
        assert not each.at_edge
    for each in found(lambda rate, run: 2.0).values():
        assert (each.rate, each.vertex, each.at_edge) == (pytest.approx(0.0025), False, True)


def test_all_diverged_or_not_all_finished_is_refused() -> None:
    with pytest.raises(ValueError, match="every run of 'dense'.*a learning rate that does not diverge"):
        found(lambda rate, run: math.nan if run.family == "dense" else 2.0)
    runs = plan(recipe())
    with pytest.raises(ValueError, match="2 runs of the search missing"):
        found_rates(recipe(), runs, rows(runs, parabola(0.01))[2:])
