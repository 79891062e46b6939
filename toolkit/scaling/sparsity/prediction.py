"""A prediction that can fail: losses of runs larger than any that the law has seen, written down before they run."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from toolkit.checks import require, require_positive
from toolkit.files import write_atomically
from toolkit.scaling.laws import FittedForm, FormBootstrap
from toolkit.scaling.results import RunResult
from toolkit.scaling.sparsity.widths import Widths


@dataclass(frozen=True)
class NextBudget:
    """What is predicted, and then trained.

    Attributes:
        flops: of each run, more than any budget of the grid.
        families: which; None for every family of the grid.
        seeds: runs of each.

    Raises:
        ValueError: if a number is not positive, or the families are none or one is named twice.
    """

    flops: float
    families: tuple[str, ...] | None = None
    seeds: int = 1

    def __post_init__(self) -> None:
        require_positive(flops=self.flops, seeds=self.seeds)
        families = self.families
        once = families is None or 0 < len(families) == len(set(families))
        require(once, "next_budget.families", families, "None for all, or one or more, each named once")


@dataclass(frozen=True)
class Prediction:
    """What a law expects of one family at a budget, at the width it finds best.

    Attributes:
        family: its name.
        budget: FLOPs.
        dim: the width of the lowest predicted loss.
        active, total: parameters multiplied with for one token, and all of them.
        tokens: to train on.
        loss: bits per byte.
        low, high: 95% prediction interval of one run: the law's own uncertainty and a run's scatter around it.
        at_edge: the best width is the least or the largest that was allowed.
        law: the form that was fitted.
    """

    family: str
    budget: float
    dim: int
    active: float
    total: float
    tokens: float
    loss: float
    low: float
    high: float
    at_edge: bool
    law: str


def predict(law: FittedForm, draws: FormBootstrap, widths: Widths, budget: float) -> Prediction:
    """The best width of one family at ``budget`` FLOPs by the law, and the loss it expects there."""
    runs = widths.runs(np.array([budget]))
    losses = law.predict(runs)
    best = int(losses.argmin())
    chosen = runs.where(np.arange(len(runs)) == best)
    low, high = (float(bound[0]) for bound in draws.interval(chosen, noise=True))
    return Prediction(
        widths.family,
        budget,
        widths.dims[best],
        float(widths.active[best]),
        float(widths.total[best]),
        budget / float(widths.flops[best]),
        float(losses[best]),
        low,
        high,
        best in (0, len(widths.dims) - 1),
        law.form.title,
    )


def keep_predictions(path: Path, predictions: Sequence[Prediction]) -> list[Prediction]:
    """Write the predictions down, or give back those that stand there: what was predicted first is what is tested.

    Where there are none, that is written too, since other processes wait for the file.

    Raises:
        ValueError: if the file holds predictions for another budget or other families.
    """
    kept = wait_for_predictions(path) if path.exists() else []
    if kept:
        same = [(each.family, each.budget) for each in kept] == [(each.family, each.budget) for each in predictions]
        right = "predictions for the same families and budget, or another folder"
        require(same or not predictions, "prediction", str(path), right)
        return kept
    write_atomically(path, json.dumps([asdict(each) for each in predictions], indent=2) + "\n")
    return list(predictions)


def wait_for_predictions(path: Path) -> list[Prediction]:
    """The predictions that stand in ``path``, once they do; none where none could be made."""
    return [Prediction(**each) for each in json.loads(wait_for(path))]


def wait_for(path: Path) -> str:
    """What the main process writes into ``path``, once it has.

    Raises:
        RuntimeError: if this process' parent, which in a run that started its own processes is the main one, ended
            meanwhile.
    """
    parent = os.getppid()
    while not path.exists():
        if os.getppid() != parent:
            raise RuntimeError(f"{path} was waited for, but the main process ended without it")
        time.sleep(1)
    return path.read_text()


@dataclass(frozen=True)
class Tested:
    """A prediction and what its runs measured.

    Attributes:
        prediction: as it was written down.
        measured: bits per byte of each run that did not diverge, by its name.
        diverged: names of those that did.
    """

    prediction: Prediction
    measured: Mapping[str, float]
    diverged: tuple[str, ...] = ()

    @property
    def loss(self) -> float:
        """Mean of the runs that did not diverge; nan where all did."""
        return float(np.mean(list(self.measured.values()))) if self.measured else math.nan

    @property
    def error(self) -> float:
        """Measured over predicted, less 1."""
        return self.loss / self.prediction.loss - 1

    @property
    def held(self) -> bool:
        """Every run lies within the interval, which one that diverged does not."""
        inside = (self.prediction.low <= loss <= self.prediction.high for loss in self.measured.values())
        return not self.diverged and all(inside)


def tested(predictions: Sequence[Prediction], rows: Sequence[RunResult]) -> list[Tested]:
    """Each prediction that has runs which ended, diverged ones included, beside them."""
    found = []
    for prediction in predictions:
        cell = prediction.family, prediction.budget, prediction.dim
        mine = {row.run: row.bits_per_byte for row in rows if (row.family, row.budget, row.dim) == cell}
        finite = {run: loss for run, loss in mine.items() if math.isfinite(loss)}
        diverged = tuple(run for run in mine if run not in finite)
        found += [Tested(prediction, finite, diverged)] if mine else []
    return found
