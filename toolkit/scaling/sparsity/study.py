"""The stages of the study: search the rates, train the grid, fit the laws, predict a larger budget, train it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from toolkit.checks import require, require_choice
from toolkit.compute import DEVICES
from toolkit.files import write_atomically
from toolkit.parallel import is_main_process
from toolkit.scaling.laws import FittedForm, FormBootstrap, SelectionTable, fit_form, runs_of, select
from toolkit.scaling.laws.forms import (
    Chinchilla,
    Form,
    Granularity,
    JointMoE,
    SharedExponents,
    SharedIrreducible,
    SparsitySurface,
)
from toolkit.scaling.laws.isoflop import finite_runs
from toolkit.scaling.laws.runs import Runs
from toolkit.scaling.plan import ModelShape, PlannedRun, plan_run
from toolkit.scaling.results import RunResult
from toolkit.scaling.sparsity.frontier import LawMultiplier, law_multipliers
from toolkit.scaling.sparsity.prediction import (
    NextBudget,
    Prediction,
    Tested,
    keep_predictions,
    predict,
    tested,
    wait_for_predictions,
)
from toolkit.scaling.sparsity.search import FoundRate, found_rates, plan_search
from toolkit.scaling.sparsity.widths import Widths, architecture, by_family, every_width
from toolkit.scaling.study import Study

FORMS: tuple[Form, ...] = (
    SharedExponents(),
    SharedIrreducible(),
    Chinchilla(),
    Granularity(),
    JointMoE(),
    SparsitySurface(),
)
"""What is fitted to the grid and held against one another."""

RESAMPLES = 1000


@dataclass(frozen=True)
class LawSettings:
    """How laws are fitted and what they are asked.

    Attributes:
        baseline: the dense family.
        dims: the least and the largest width that a law may choose.
        device: of :data:`toolkit.compute.DEVICES`, onto which steps are projected; None for no projection.
        device_dim, device_layers, device_head_dim, device_context, device_batch: of the models that are projected.

    Raises:
        ValueError: if the device is unknown or the widths no range.
    """

    baseline: str = "dense"
    dims: tuple[int, int] = (8, 128)
    device: str | None = "H100"
    device_dim: int = 2048
    device_layers: int = 24
    device_head_dim: int = 128
    device_context: int = 4096
    device_batch: int = 8

    def __post_init__(self) -> None:
        require_choice("device", self.device, (None, *DEVICES))
        require(0 < self.dims[0] < self.dims[1], "dims", self.dims, "two widths, ascending")


@dataclass(frozen=True)
class Laws:
    """What the grid's runs say, fitted.

    Attributes:
        runs: all families' cells.
        selection: the forms held against one another.
        best: the law of the lowest cross-validated error that tells families apart.
        draws: the same of resampled cells.
        multipliers: of every family and budget, by it.
    """

    runs: Runs
    selection: SelectionTable
    best: FittedForm
    draws: FormBootstrap
    multipliers: tuple[LawMultiplier, ...]


@dataclass(frozen=True)
class SparsityStudy:
    """A study in stages; each is gone on with where it was left.

    Attributes:
        base: corpus, shape, grid, training and folder.
        laws: how laws are fitted.
        next_budget: what is predicted and trained last; None for nothing.
    """

    base: Study
    laws: LawSettings
    next_budget: NextBudget | None

    def __post_init__(self) -> None:
        families = self.families
        require(self.laws.baseline in families, "laws.baseline", self.laws.baseline, "one of " + ", ".join(families))
        if self.next_budget is not None:
            largest = max(budget.flops for budget in self.base.grid.budgets)
            flops = self.next_budget.flops
            require(flops > largest, "next_budget.flops", flops, f"more than the grid's largest budget, {largest:g}")

    @property
    def shape(self) -> ModelShape:
        """How a width and a family make a model."""
        assert isinstance(self.base.shape, ModelShape)
        return self.base.shape

    @property
    def families(self) -> tuple[str, ...]:
        """All that is compared."""
        return self.base.grid.families or self.shape.families

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer."""
        return self.base.prepared.tokenizer.vocab_size

    @cached_property
    def search_runs(self) -> list[PlannedRun]:
        """The runs that look for each family's learning rate; none where none is looked for."""
        grid = self.base.grid
        return plan_search(grid.recipe, self.shape, self.families, self.vocab_size, self.base.training)

    def search(self) -> tuple[SparsityStudy, dict[str, FoundRate], list[RunResult]]:
        """Train the search; the study with the rates that it found, those, and its rows."""
        if not self.search_runs:
            return self, {}, []
        rows = self.base.train(self.search_runs, self.base.step_seconds(self.search_runs))
        found = found_rates(self.base.grid.recipe, self.search_runs, rows) if is_main_process() else {}
        rates = self._shared("learning_rates.json", {family: each.rate for family, each in found.items()})
        return replace(self, base=replace(self.base, rates=rates)), found, rows

    def _shared(self, name: str, values: dict[str, float]) -> dict[str, float]:
        """What the main process found, in every process: written in the study's folder, which all of them see."""
        path = self.base.folder.path / name
        if is_main_process():
            write_atomically(path, json.dumps(values, indent=2) + "\n")
        while not path.exists():
            time.sleep(1)
        shared: dict[str, float] = json.loads(path.read_text())
        return shared

    @cached_property
    def widths(self) -> dict[str, Widths]:
        """What each family can be built as."""
        low, high = self.laws.dims
        dims = every_width(self.shape, self.families, low, high, self.vocab_size)
        return dict(by_family(self.shape, self.families, dims, self.vocab_size, self.base.training.context))

    def fit(self, rows: Sequence[RunResult], resamples: int = RESAMPLES) -> Laws:
        """Laws of the grid's finished runs.

        Raises:
            ValueError: if no form can be fitted to them.
        """
        runs = runs_of(finite_runs(rows)[0], architecture(self.shape))
        selection = select(FORMS, runs)
        best = fit_form(selection.best, runs)
        draws = best.bootstrap(resamples)
        budgets = sorted({row.budget for row in rows} | ({self.next_budget.flops} if self.next_budget else set()))
        dense = [row.budget for row in rows if row.family == self.laws.baseline]
        found = law_multipliers(
            best, draws, self.widths, self.laws.baseline, np.array(budgets), (min(dense), max(dense))
        )
        return Laws(runs, selection, best, draws, tuple(found))

    def predictions(self, laws: Laws | None) -> list[Prediction]:
        """What the laws expect of the next budget, written down the first time that it is asked.

        Processes other than the main one, which have no laws, read what that wrote.
        """
        if self.next_budget is None or (laws is None and is_main_process()):
            return []
        if laws is None:
            return wait_for_predictions(self.prediction_path)
        families = self.next_budget.families or self.families
        found = [predict(laws.best, laws.draws, self.widths[family], self.next_budget.flops) for family in families]
        return keep_predictions(self.prediction_path, found)

    @property
    def prediction_path(self) -> Path:
        """Where the predictions are kept."""
        return self.base.folder.path / "prediction.json"

    def next_runs(self, predictions: Sequence[Prediction]) -> list[PlannedRun]:
        """The runs that test the predictions, each at the width that was predicted to be best."""
        base, seeds = self.base, self.next_budget.seeds if self.next_budget else 0
        rates = base.rates or {}
        return [
            plan_run(
                each.budget, each.family, each.dim, seed, self.shape, self.vocab_size, base.training,
                base.grid.recipe.at_rate(rates.get(each.family)),
            )
            for seed in range(seeds)
            for each in predictions
        ]  # fmt: skip

    def test(
        self, predictions: Sequence[Prediction], say: Callable[[str], None]
    ) -> tuple[list[Tested], list[RunResult]]:
        """Train the next budget's runs; predictions beside what was measured, and their rows."""
        runs = self.next_runs(predictions)
        if not runs:
            return [], []
        for each in predictions:
            say(f"predicted: {each.family} dim {each.dim}: {each.loss:.4f} ({each.low:.4f} to {each.high:.4f})")
        rows = self.base.train(runs, self.base.step_seconds(runs))
        return tested(predictions, finite_runs(rows)[0]), rows
