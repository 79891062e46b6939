"""The stages of the study: search the rates, train the grid, fit the laws, predict a larger budget, train it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from toolkit.checks import require, require_choice, require_positive
from toolkit.compute import DEVICES
from toolkit.files import write_atomically
from toolkit.parallel import is_main_process
from toolkit.scaling.laws import FittedForm, FormBootstrap, SelectionTable, runs_of, select
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
from toolkit.scaling.plan import TOLERANCE, ModelShape, PlannedRun, plan_run
from toolkit.scaling.results import RunResult
from toolkit.scaling.sparsity.frontier import LawMultiplier, best_law, law_multipliers
from toolkit.scaling.sparsity.prediction import (
    NextBudget,
    Prediction,
    Tested,
    keep_predictions,
    predict,
    tested,
    wait_for,
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
        ValueError: if the device is unknown, a size of its models not positive, or the widths no range.
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
        sizes = ("device_dim", "device_layers", "device_head_dim", "device_context", "device_batch")
        require_positive(**{name: getattr(self, name) for name in sizes})


@dataclass(frozen=True)
class Laws:
    """What the grid's runs say, fitted.

    Attributes:
        runs: all families' finished ones.
        selection: the forms held against one another.
        best: the law of the lowest cross-validated error among those that tell all families apart.
        draws: the same of resampled cells.
        multipliers: of every family that has runs, and every budget, by it.
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

    Raises:
        ValueError: if the grid does not train the baseline or a family of the next budget, the next budget is not above
            the grid's, or the shape makes no model of the sizes that are projected onto a device.
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
            for family in self.next_families:
                require(family in families, "next_budget.families", family, "one of " + ", ".join(families))
        for family in families if self.laws.device else ():
            self.device_shape.decoder(family, self.laws.device_dim, 1)  # refuses what could not be projected

    @property
    def shape(self) -> ModelShape:
        """How a width and a family make a model."""
        assert isinstance(self.base.shape, ModelShape)
        return self.base.shape

    @property
    def families(self) -> tuple[str, ...]:
        """All that the grid trains."""
        return tuple(dict.fromkeys(family for *_, family in self.base.grid.cells(self.shape.families)))

    @property
    def next_families(self) -> tuple[str, ...]:
        """All that the next budget trains."""
        if self.next_budget is None:
            return ()
        return self.families if self.next_budget.families is None else self.next_budget.families

    @property
    def device_shape(self) -> ModelShape:
        """How the models are made that are projected onto a device."""
        layers, head_dim = self.laws.device_layers, self.laws.device_head_dim
        return replace(self.shape, layers=layers, aspect_ratio=None, head_dim=head_dim)

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
        shared: dict[str, float] = json.loads(wait_for(path))
        return shared

    @cached_property
    def widths(self) -> dict[str, Widths]:
        """What each family can be built as."""
        low, high = self.laws.dims
        dims = every_width(self.shape, self.families, low, high, self.vocab_size)
        return dict(by_family(self.shape, self.families, dims, self.vocab_size, self.base.training.context))

    def require_steps(self) -> None:
        """Refuse, before anything is trained, a next budget that a width which a law may choose could not spend.

        Raises:
            ValueError: if its runs could be of so few steps that no whole number of them spends it within 1%.
        """
        budget, training = self.next_budget.flops if self.next_budget else 0.0, self.base.training
        for family in self.next_families:
            widths = self.widths[family]
            for dim, token in zip(widths.dims, widths.flops, strict=True):
                batch_size = self.base.grid.recipe.batch_size(budget / token, training.batch_size)
                least = token * batch_size * training.context / (2 * TOLERANCE)
                right = f"{least:.4g} or more for {family} at dim={dim}, or laws.dims must end before that width"
                require(budget >= least, "next_budget.flops", budget, right)

    def fit(self, rows: Sequence[RunResult], resamples: int = RESAMPLES) -> Laws:
        """Laws of the grid's finished runs.

        Raises:
            ValueError: if no form that tells families apart can be fitted to them, or the baseline has none.
        """
        finite, baseline = finite_runs(rows)[0], self.laws.baseline
        runs = runs_of(finite, architecture(self.shape), branched=self.base.grid.branch)
        require(baseline in runs.families, "rows", f"none of {baseline!r} with a finite loss", "some of the baseline")
        widths = {family: each for family, each in self.widths.items() if family in runs.families}
        selection = select(FORMS, runs)
        best = best_law(selection, runs, widths)
        draws = best.bootstrap(resamples)
        spent = {family: [row.budget for row in finite if row.family == family] for family in widths}
        trained = {family: (min(budgets), max(budgets)) for family, budgets in spent.items()}
        asked = {row.budget for row in finite} | ({self.next_budget.flops} if self.next_budget else set())
        found = law_multipliers(best, draws, widths, baseline, np.array(sorted(asked)), trained)
        return Laws(runs, selection, best, draws, tuple(found))

    def predictions(self, laws: Laws | None) -> list[Prediction]:
        """What the laws expect of the next budget, written down the first time that it is asked; none without laws.

        Processes other than the main one, which have no laws, read what that wrote.

        Raises:
            ValueError: if runs of the next budget ended before anything was predicted, or as :func:`keep_predictions`.
        """
        if self.next_budget is None:
            return []
        if not is_main_process():
            return wait_for_predictions(self.prediction_path)
        flops = self.next_budget.flops
        early = [row.run for row in self.base.folder.table.read() if row.budget == flops]
        right = f"written before its runs: {', '.join(early)} ended without it; use another out="
        require(self.prediction_path.exists() or not early, "prediction", str(self.prediction_path), right)
        found = (
            []
            if laws is None
            else [
                predict(laws.best, laws.draws, self.widths[family], flops)
                for family in self.next_families
                if family in laws.runs.families
            ]
        )
        return keep_predictions(self.prediction_path, found)

    @property
    def prediction_path(self) -> Path:
        """Where the predictions are kept."""
        return self.base.folder.path / "prediction.json"

    def next_runs(self, predictions: Sequence[Prediction]) -> list[PlannedRun]:
        """The runs that test the predictions, each at the width that was predicted to be best."""
        seeds = self.next_budget.seeds if self.next_budget else 0
        return [
            replace(self._next_run(each, seed), stage="prediction") for seed in range(seeds) for each in predictions
        ]

    def _next_run(self, each: Prediction, seed: int) -> PlannedRun:
        base, rate = self.base, (self.base.rates or {}).get(each.family)
        recipe = base.grid.recipe.at_rate(rate)
        return plan_run(each.budget, each.family, each.dim, seed, self.shape, self.vocab_size, base.training, recipe)

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
        return tested(predictions, rows), rows
