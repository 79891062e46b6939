"""The figures of the study: those of every study of equal compute, with its law's curves and its predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.data import validation_windows
from toolkit.scaling.figures.predictions import Prediction
from toolkit.scaling.laws.isoflop import finite_runs
from toolkit.scaling.multiplier import ComputeMultiplier
from toolkit.scaling.page.isoflop import FittedCurve
from toolkit.scaling.page.study_figures import study_figures
from toolkit.scaling.report_figure import ReportFigure
from toolkit.scaling.sparsity.cli import Findings
from toolkit.scaling.sparsity.context_use import context_use, plot_context_use
from toolkit.scaling.sparsity.prediction import Tested
from toolkit.scaling.sparsity.study import Laws
from toolkit.scaling.sparsity.widths import Widths


def sparsity_figures(found: Findings, multipliers: Sequence[ComputeMultiplier], command: str) -> list[ReportFigure]:
    """Draw them into the study's folder, in the order of the report.

    Args:
        found: what the study found.
        multipliers: of the grid.
        command: what repeats the study.
    """
    base = found.study.base
    corpus, training = base.prepared, base.training
    windows = validation_windows(corpus.validation, training.context, base.validation_windows)
    finite = finite_runs(found.rows)[0]
    figures = study_figures(
        base.folder,
        finite,
        multipliers,
        command=command,
        curves=_curves(found.study.widths, found.laws, sorted({row.budget for row in found.rows})),
        predictions=_predictions(found.tests),
        windows=windows,
        tokenizer=corpus.tokenizer,
    )
    reach = plot_context_use(context_use(base.folder, finite, windows), base.folder.path / "context_use.png")
    return [*figures, reach.backed(command=command)]


def _curves(widths: dict[str, Widths], laws: Laws | None, budgets: Sequence[float]) -> list[FittedCurve]:
    """The law along every family's isoFLOP curves, with its 95% confidence interval."""
    if laws is None:
        return []
    found = []
    for family, mine in widths.items():
        for budget in budgets:
            runs = mine.runs(np.array([budget]))
            low, high = laws.draws.interval(runs, noise=False)
            found.append(
                FittedCurve(family, budget, mine.active, laws.best.predict(runs), low, high, laws.best.form.title)
            )
    return found


def _predictions(tests: Sequence[Tested]) -> list[Prediction]:
    return [
        Prediction(run, each.family, each.loss, measured, each.low, each.high)
        for test in tests
        for each in [test.prediction]
        for run, measured in test.measured.items()
    ]
