"""Plans: every budget spent, nothing named twice, and sparse models that differ only in what they do not use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from toolkit.compute import cost, memory
from toolkit.models import DecoderConfig
from toolkit.parallel import ParallelConfig
from toolkit.scaling import Grid, IsoFLOP, ModelShape, PlannedRun, plan_isoflop
from toolkit.scaling.plan import TOLERANCE, Recipe, data_warnings, grid_warnings
from toolkit.training import TrainingConfig

BASE = TrainingConfig(steps=1, context=32, batch_size=4, precision="32-true")
DIMS = (8, 16, 24, 32)
FAMILIES = ModelShape().families


def plan(
    *budgets: IsoFLOP, shape: ModelShape | None = None, base: TrainingConfig = BASE, **grid: Any
) -> list[PlannedRun]:
    return plan_isoflop(Grid(budgets, **grid), shape or ModelShape(), 256, base)


def step_flops(run: PlannedRun) -> float:
    return cost(run.model, run.training.context).training_flops["exact"] * run.training.tokens_per_step


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    flops = draw(st.lists(st.floats(1e9, 1e12), min_size=1, max_size=3, unique_by=lambda value: f"{value:g}"))
    dims = st.lists(st.sampled_from(DIMS), min_size=1, max_size=3, unique=True).map(tuple)
    families = st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=4, unique=True).map(tuple)
    budgets = tuple(IsoFLOP(value, draw(dims), draw(st.none() | families)) for value in flops)
    return Grid(budgets, families=draw(st.none() | families), seeds=draw(st.integers(1, 3)))


@settings(max_examples=50)
@given(grids(), st.sampled_from([1, 2]), st.sampled_from([16, 32]))
def test_every_run_spends_its_budget_within_1_percent(grid: Grid, batch_size: int, context: int) -> None:
    base = TrainingConfig(steps=1, context=context, batch_size=batch_size, precision="32-true")
    try:
        runs = plan_isoflop(grid, ModelShape(), 256, base)
    except ValueError as error:
        assert "flops=" in str(error)  # refused, never planned wrong
        assume(False)
    for run in runs:
        spent = step_flops(run) * run.training.steps
        assert abs(spent / run.budget - 1) <= TOLERANCE
        assert abs(spent - run.budget) <= step_flops(run) / 2 * (1 + 1e-9)  # and no other number of steps is nearer
        assert run.flops["exact"] == pytest.approx(spent)
        assert run.tokens == run.training.steps * batch_size * context
    asked = sum(len(budget.dims) * len(budget.families or grid.families or FAMILIES) for budget in grid.budgets)
    assert len({run.name for run in runs}) == len(runs) == asked * grid.seeds


def test_seeds_are_outermost_so_that_half_a_study_is_a_whole_one() -> None:
    runs = plan(IsoFLOP(1e10, (16, 24)), IsoFLOP(2e10, (24,), families=("dense",)), families=("dense", "moe"), seeds=2)
    cells = [(run.family, run.budget, run.dim) for run in runs]
    assert [run.seed for run in runs] == [0] * 5 + [1] * 5
    assert cells[:5] == cells[5:]
    assert len(set(cells[:5])) == 5
    assert [run.training.seed for run in runs] == [run.seed for run in runs]


def test_a_run_takes_its_own_steps_rate_and_seed_and_the_rest_from_the_base() -> None:
    base = TrainingConfig(steps=1, context=16, batch_size=2, schedule="wsd", weight_decay=0.3, precision="32-true")
    (run,) = plan(IsoFLOP(1e10, (24,)), base=base, families=("moe",), seeds=1, recipe=Recipe(0.6, base_dim=1))
    assert run.training.learning_rate == pytest.approx(0.6 / 24)
    assert run.training.steps == round(1e10 / step_flops(run))
    own = {"steps", "learning_rate", "seed"}
    kept = {name: value for name, value in vars(run.training).items() if name not in own}
    assert kept == {name: value for name, value in vars(base).items() if name not in own}


def test_the_names_say_the_cell() -> None:
    (run,) = plan(IsoFLOP(1.5e11, (24,)), families=("moe+window",), seeds=1)
    assert run.name == "moe+window-dim24-flops1.5e11-seed0"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flops": 0.0, "dims": (8,)}, "flops=0.0: it must be positive"),
        ({"flops": 1e9, "dims": ()}, r"dims=\(\): it must be at least one positive width"),
        ({"flops": 1e9, "dims": (8, 0)}, r"dims=\(8, 0\): it must be at least one positive width"),
    ],
)
def test_a_bad_budget_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IsoFLOP(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budgets": ()}, r"budgets=\(\): it must be at least one"),
        ({"seeds": 0}, "seeds=0: it must be positive"),
    ],
)
def test_a_bad_grid_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(**{"budgets": (IsoFLOP(1e9, (8,)),), **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"families": ("dense", "moa")}, "families='moa': it must be among dense, moe"),
        ({"families": ()}, r"families=\(\): it must be at least one among dense, moe"),
        ({"budgets": (IsoFLOP(1e9, (8,), families=("sparse",)),)}, "families='sparse': it must be among dense, moe"),
    ],
)
def test_families_that_the_shape_does_not_have_are_refused(settings: dict[str, Any], message: str) -> None:
    grid = Grid(**{"budgets": (IsoFLOP(1e9, (8,)),), **settings})
    with pytest.raises(ValueError, match=message):
        plan_isoflop(grid, ModelShape(), 256, BASE)


@dataclass(frozen=True)
class Layers:
    """A shape of another kind: its families are depths."""

    families = ("one", "two")

    def decoder(self, family: str, dim: int, vocab_size: int) -> DecoderConfig:
        return ModelShape(layers=1 + self.families.index(family)).decoder("dense", dim, vocab_size)


def test_any_shape_can_be_planned_and_its_families_are_all_of_it_unless_said_otherwise() -> None:
    grid = Grid((IsoFLOP(1e10, (16,)), IsoFLOP(2e10, (16,), families=("two",))), seeds=1)
    runs = plan_isoflop(grid, Layers(), 256, BASE)
    assert [(run.family, run.budget, len(run.model.blocks)) for run in runs] == [
        ("one", 1e10, 1), ("two", 1e10, 2), ("two", 2e10, 2),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="families='dense': it must be among one, two"):
        plan_isoflop(Grid((IsoFLOP(1e10, (16,)),), families=("dense",)), Layers(), 256, BASE)


def test_a_budget_below_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"flops=1000000.0: it must be at least .*, one step of dense at dim=16"):
        plan(IsoFLOP(1e6, (16,)), families=("dense",))


def test_a_budget_that_no_whole_number_of_steps_spends_is_refused() -> None:
    (run,) = plan(IsoFLOP(1e10, (16,)), families=("dense",), seeds=1)
    step = step_flops(run)
    for steps in (1.4, 7.5, 30.4):
        with pytest.raises(ValueError, match="flops=.*: it must be within 1% of a whole number of steps"):
            plan(IsoFLOP(steps * step, (16,)), families=("dense",))
    (few,) = plan(IsoFLOP(3.02 * step, (16,)), families=("dense",), seeds=1)
    assert few.training.steps == 3


@pytest.mark.parametrize(
    "budgets",
    [
        (IsoFLOP(1e10, (16, 16)),),
        (IsoFLOP(1e10, (16,)), IsoFLOP(1e10, (24, 16))),
        (IsoFLOP(1e10, (16,), families=("dense", "dense")),),
        (IsoFLOP(1.00000001e10, (16,)), IsoFLOP(1e10, (16,))),  # other numbers, but the same name
    ],
)
def test_a_cell_named_twice_is_refused(budgets: tuple[IsoFLOP, ...]) -> None:
    with pytest.raises(ValueError, match=r"budgets=.*dim16.*: it must be a grid that names no cell twice"):
        plan(*budgets, families=("dense",))


def test_a_budget_that_needs_more_text_than_there_is_is_told() -> None:
    runs = plan(IsoFLOP(1e10, (16, 32)), IsoFLOP(4e10, (16, 32)), families=("dense",), seeds=2)
    tokens = {(run.budget, run.dim): run.tokens for run in runs}
    assert data_warnings(runs, max(tokens.values())) == []
    (line,) = data_warnings(runs, tokens[4e10, 16] // 2)
    assert line.startswith(f"budget 4e10 needs {tokens[4e10, 16]:,} tokens")
    assert "2.00 epochs" in line
    assert len(data_warnings(runs, 1000)) == 2


def ratios(runs: list[PlannedRun]) -> list[float]:
    """Tokens for each active parameter."""
    return [run.tokens / sum(run.cost.active_parameters.values()) for run in runs]


def test_a_grid_that_may_show_the_best_size_at_every_budget_has_no_warnings() -> None:
    runs = plan(IsoFLOP(4e9, (8, 16, 24)), IsoFLOP(1.6e10, (16, 24, 32)), families=("dense",), seeds=2)
    assert min(ratios(runs)) < 100 < 5 * max(ratios(runs))
    assert grid_warnings(runs) == []


def test_families_with_too_few_widths_for_a_parabola_are_told_by_budget() -> None:
    dense = IsoFLOP(4e9, (8, 16, 24), families=("dense",))
    runs = plan(dense, IsoFLOP(1e10, (16, 24)), families=("dense", "moe"), seeds=2)
    moe = plan(IsoFLOP(4e9, (16,)), families=("moe",), seeds=1)
    first, second = grid_warnings([*runs, *moe])
    assert first == "budget 4e9 has fewer than 3 widths, too few for the minimum of a curve: 1 of moe"
    assert second.endswith(": 2 of dense, 2 of moe")


@pytest.mark.parametrize(("flops", "dims", "side"), [(1e10, (48, 64, 80), "below 5"), (1e12, (8, 16, 24), "above 100")])
def test_models_that_are_all_too_large_or_all_too_small_are_told(
    flops: float, dims: tuple[int, ...], side: str
) -> None:
    base = replace(BASE, batch_size=1)
    runs = plan(IsoFLOP(flops, dims), families=("dense",), seeds=1, base=base)
    (line,) = grid_warnings(runs)
    assert f"{min(ratios(runs)):.3g} to {max(ratios(runs)):.3g} tokens for each active parameter, all {side}" in line
    assert (max(ratios(runs)) < 5) if side == "below 5" else (min(ratios(runs)) > 100)


@pytest.mark.parametrize(("precision", "counted"), [("32-true", "32-true"), ("64-true", "32-true")])
def test_memory_is_of_one_device_s_share(precision: str, counted: str) -> None:
    base = TrainingConfig(steps=1, context=32, batch_size=4, precision=precision)
    (run,) = plan(IsoFLOP(1e10, (16,)), base=base, families=("moe",), seeds=1)
    assert run.memory() == memory(run.model, 4, 32, counted)
    two = ParallelConfig(devices=2)
    assert run.memory(two) == memory(run.model, 2, 32, counted, two)
