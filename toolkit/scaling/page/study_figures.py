"""All figures of a study of equal compute, each a PNG beside the report with its interactive twin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from toolkit.data.tokenizer import Tokenizer
from toolkit.scaling.figures import plot_frontier, plot_isoflop, run_names
from toolkit.scaling.figures.cost import plot_multipliers, plot_total_parameters
from toolkit.scaling.figures.course import plot_balance_over_time, plot_expert_load, plot_training
from toolkit.scaling.figures.experts import paired_layers, plot_classes, plot_co_selection, plot_specialisation
from toolkit.scaling.figures.predictions import Prediction, plot_predictions
from toolkit.scaling.folder import StudyFolder
from toolkit.scaling.multiplier import ComputeMultiplier
from toolkit.scaling.page import course, experts, plots
from toolkit.scaling.page.isoflop import FittedCurve, isoflop, reading
from toolkit.scaling.page.predictions import predicted_against_measured
from toolkit.scaling.report_figure import ReportFigure
from toolkit.scaling.results import RunResult
from toolkit.scaling.run_records import balance_curve, expert_loads, loss_curve
from toolkit.scaling.specialisation import run_specialisation
from toolkit.scaling.token_classes import token_classes, token_label


def study_figures(
    study: StudyFolder,
    rows: Sequence[RunResult],
    multipliers: Sequence[ComputeMultiplier] = (),
    *,
    command: str = "",
    curves: Sequence[FittedCurve] = (),
    predictions: Sequence[Prediction] = (),
    windows: Tensor | None = None,
    tokenizer: Tokenizer | None = None,
) -> list[ReportFigure]:
    """Draw every figure that the study has the data for into its folder, each with its twin, its command and its runs.

    In order: isoFLOP curves, frontiers, multipliers, loss against all parameters, training, predictions; and where runs
    have a router, balance, the best run's expert load and, given ``windows``, what its experts specialise in.

    Args:
        study: the folder; its runs' folders are read.
        rows: finished runs with finite losses.
        multipliers: of :func:`toolkit.scaling.study_multipliers`.
        command: what repeats the study.
        curves: of fitted laws, drawn into the interactive isoFLOP figure.
        predictions: for the figure of predicted against measured.
        windows: validation windows int64 (windows, context + 1), to see what experts specialise in.
        tokenizer: names the windows' ids.

    Raises:
        ValueError: no rows, or a loss that is not finite.
        FileNotFoundError: a run's folder lacks its records.
    """
    figures = [
        *_table_figures(study.path, rows, multipliers, curves),
        *_course_figures(study, rows),
        *_prediction_figures(study.path, predictions),
        *_expert_figures(study, rows, windows, tokenizer),
    ]
    return [figure.backed(command=command) for figure in figures]


def _table_figures(
    folder: Path, rows: Sequence[RunResult], multipliers: Sequence[ComputeMultiplier], curves: Sequence[FittedCurve]
) -> list[ReportFigure]:
    """Those that the table of runs alone is enough for."""
    curved = plot_isoflop(rows, folder / "isoflop.png").backed(interactive=isoflop(rows, curves))
    figures = [
        replace(curved, caption=curved.caption + reading(rows, curves)),
        plot_frontier(rows, folder / "frontier.png", multipliers).backed(interactive=plots.frontier(rows, multipliers)),
    ]
    if multipliers:
        drawn = plot_multipliers(multipliers, folder / "multiplier.png", run_names(rows))
        figures.append(drawn.backed(interactive=plots.multipliers(multipliers)))
    drawn = plot_total_parameters(rows, folder / "total_parameters.png")
    return [*figures, drawn.backed(interactive=plots.total_parameters(rows))]


def _course_figures(study: StudyFolder, rows: Sequence[RunResult]) -> list[ReportFigure]:
    """Losses of every run, and balance of those with a router, over the course of training."""
    losses = [loss_curve(study.run(row.run), row) for row in rows]
    balance = [balance_curve(study.run(row.run), row) for row in rows]
    figures = [plot_training(losses, study.path / "training.png").backed(interactive=course.training(losses))]
    routed = [curve for curve in balance if curve is not None]
    if routed:
        families = {row.family for row in rows}
        drawn = plot_balance_over_time(routed, study.path / "balance.png", families)
        figures.append(drawn.backed(interactive=course.balance(routed, families)))
    return figures


def _prediction_figures(folder: Path, predictions: Sequence[Prediction]) -> list[ReportFigure]:
    if not predictions:
        return []
    drawn = plot_predictions(predictions, folder / "predictions.png")
    return [drawn.backed(interactive=predicted_against_measured(predictions))]


def _expert_figures(
    study: StudyFolder, rows: Sequence[RunResult], windows: Tensor | None, tokenizer: Tokenizer | None
) -> list[ReportFigure]:
    """The load over time, and what experts specialise in, of the best run with a router; nothing if there is none."""
    routed = [row for row in rows if not math.isnan(row.max_violation)]
    if not routed:
        return []
    run = min(routed, key=lambda row: row.bits_per_byte).run
    steps, loads = expert_loads(study.run(run))
    figures = []
    if len(steps) > 1:  # a run shorter than log_every has one record, and no course to draw
        drawn = plot_expert_load(loads, steps, study.path / "expert_load.png", run)
        figures.append(drawn.backed(interactive=course.expert_load(loads, steps, run)))
    if windows is None or tokenizer is None:
        return figures
    return figures + _specialisation_figures(study, run, windows, tokenizer)


def _specialisation_figures(study: StudyFolder, run: str, windows: Tensor, tokenizer: Tokenizer) -> list[ReportFigure]:
    """Tokens and kinds of tokens by expert, and where a token has several experts which go together."""
    layers = run_specialisation(study.run(run), windows)
    labels = [token_label(tokenizer.decode([token])) for token in range(tokenizer.vocab_size)]
    drawn = plot_specialisation(layers, labels, study.path / "specialisation.png", run)
    figures = [drawn.backed(interactive=experts.specialisation(layers, labels))]
    classes = token_classes(tokenizer)
    drawn = plot_classes(layers, classes, study.path / "token_kinds.png", run)
    figures.append(drawn.backed(interactive=experts.token_kinds(layers, classes)))
    if paired_layers(layers):
        drawn = plot_co_selection(layers, study.path / "co_selection.png", run)
        figures.append(drawn.backed(interactive=experts.co_selection(layers)))
    return figures
