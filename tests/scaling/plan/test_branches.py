"""Which runs are the beginning of which, and what that saves."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.scaling import Family, Grid, IsoFLOP, ModelShape, PlannedRun, Recipe, plan_isoflop
from toolkit.scaling.plan.branches import (
    BranchPoint,
    branches,
    flops_saved,
    flops_trained,
    require_branches,
    trunks_first,
)
from toolkit.training import TrainingConfig, learning_rate_factor

BASE = TrainingConfig(steps=10**6, context=32, batch_size=1, schedule="wsd", warmup_steps=5, decay_share=0.25)
SHAPE = ModelShape((Family("dense"), Family("moe", num_experts=4)), layers=1)
BUDGETS = (6e8, 3e8, 1.2e9)


def plan(base: TrainingConfig = BASE, recipe: Recipe | None = None, **grid: Any) -> list[PlannedRun]:
    budgets = tuple(IsoFLOP(flops, (16, 24) if flops < 1e9 else (16,)) for flops in BUDGETS)
    return plan_isoflop(Grid(budgets, seeds=2, recipe=recipe or Recipe(), **grid), SHAPE, 256, base)


def test_of_each_model_and_seed_the_longest_run_is_the_trunk_of_the_others() -> None:
    runs = plan()
    names = {(run.family, run.dim, run.seed, run.budget): run.name for run in runs}
    expected = {}
    for run in runs:
        longest = 1.2e9 if run.dim == 16 else 6e8
        if run.budget < longest:
            trunk = names[run.family, run.dim, run.seed, longest]
            expected[run.name] = BranchPoint(trunk, run.training.steps - round(run.training.steps / 4))
    assert branches(runs) == expected
    assert len(expected) == 2 * 2 * (2 + 1)  # two families and seeds; two branches at the one width, one at the other
    assert branches(runs[::-1]) == expected  # whatever the order
    require_branches(runs)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 30), st.floats(0, 0.6), st.sampled_from(["cosine", "wsd"]))
def test_a_branch_s_learning_rates_are_its_trunk_s_until_it_leaves_it(warmup: int, share: float, schedule: str) -> None:
    runs = plan(replace(BASE, warmup_steps=warmup, decay_share=share, schedule=schedule))
    by_name = {run.name: run for run in runs}
    for name, point in branches(runs).items():
        run, trunk = by_name[name], by_name[point.trunk]
        assert (run.model, run.training.seed) == (trunk.model, trunk.training.seed)
        assert replace(run.training, steps=trunk.training.steps) == trunk.training
        assert point.step <= trunk.training.decay_start
        factors = [
            [learning_rate_factor(step, each.training) for step in range(point.step + 1)] for each in (run, trunk)
        ]
        assert factors[0] == factors[1]


@pytest.mark.parametrize(
    ("changes", "recipe"),
    [
        ({"schedule": "cosine"}, Recipe()),
        ({"warmup_steps": None, "warmup_share": 0.1}, Recipe()),
        ({}, Recipe(decay_horizon=0.5)),
        ({"decay_share": 1.0, "warmup_steps": 0}, Recipe()),
    ],
)
def test_runs_whose_beginnings_depend_on_their_length_share_nothing(changes: dict[str, Any], recipe: Recipe) -> None:
    runs = plan(replace(BASE, **changes), recipe)
    assert branches(runs) == {}
    with pytest.raises(ValueError, match=r"grid.branch=True: it must be False where no two runs have one beginning"):
        require_branches(runs)
    assert flops_saved(runs) == 0
    assert flops_trained(runs) == sum(run.flops["exact"] for run in runs)


def test_only_runs_of_one_batch_share() -> None:
    runs = plan(replace(BASE, batch_size=2), Recipe(batch_exponent=0.5, batch_tokens=6e3))
    by_name = {run.name: run.training.batch_size for run in runs}
    assert len(set(by_name.values())) > 1
    assert all(by_name[name] == by_name[point.trunk] for name, point in branches(runs).items())
    for one, other in combinations(runs, 2):  # and where two are left alone, they differ in it
        alike = (one.family, one.dim, one.seed) == (other.family, other.dim, other.seed)
        if alike and not {one.name, other.name} & set(branches(runs)):
            assert one.training.batch_size != other.training.batch_size


def test_no_trunk_is_a_branch_and_every_trunk_is_a_run() -> None:
    points = branches(plan())
    trunks = {point.trunk for point in points.values()}
    assert not trunks & set(points)
    assert trunks <= {run.name for run in plan()}


def test_the_flops_of_trunks_and_decays_counted_step_by_step() -> None:
    runs = plan()
    trained: dict[tuple[Any, ...], float] = {}
    for run in runs:
        steps = run.training.steps
        for step in range(steps):
            whose = run.name if step >= steps - round(steps / 4) else "all of them"
            trained[run.family, run.dim, run.seed, step, whose] = run.flops["exact"] / steps
    assert flops_trained(runs) == pytest.approx(sum(trained.values()))
    assert flops_trained(runs) + flops_saved(runs) == pytest.approx(sum(run.flops["exact"] for run in runs))


def test_equal_budgets_save_what_hand_arithmetic_says() -> None:
    """Runs of S and 2 S steps that decay for a quarter: 2 S + S / 4 of 3 S are trained, a quarter less."""
    runs = [run for run in plan(families=("dense",)) if run.dim == 24 and run.seed == 0]
    assert flops_trained(runs) / sum(run.flops["exact"] for run in runs) == pytest.approx(0.75, abs=0.005)


def test_trunks_come_before_their_branches_and_all_else_stays() -> None:
    runs = plan()
    points = branches(runs)
    trunks = {point.trunk for point in points.values()}
    ordered = trunks_first(runs, points)
    planned, places = ({run.name: place for place, run in enumerate(order)} for order in (runs, ordered))
    assert set(places) == set(planned)
    for trunk in trunks:
        first = min((name for name in points if points[name].trunk == trunk), key=planned.__getitem__)
        late = planned[trunk] > planned[first]
        assert (places[trunk] == places[first] - 1) if late else (places[trunk] < places[first])
    rest = [run for run in runs if run.name not in trunks]
    assert [run for run in ordered if run.name not in trunks] == rest
    assert trunks_first(rest, points) == rest  # the trunks are finished
    assert [run.seed for run in ordered] == [run.seed for run in runs]  # half a study is still a whole one
