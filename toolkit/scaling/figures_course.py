"""The report's figures over the course of training: losses by FLOPs, and how evenly experts were loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from toolkit.checks import require
from toolkit.scaling.figures import blank_figure, draw_legend, family_looks, plain_ticks, save_figure, tick_text
from toolkit.scaling.report_figure import ReportFigure
from toolkit.scaling.run_records import BalanceCurve, LossCurve


def plot_training(curves: Sequence[LossCurve], path: Path) -> ReportFigure:
    """Draw training and validation loss against FLOPs spent, a line for each run.

    Raises:
        ValueError: no curves.
    """
    require(bool(curves), "curves", curves, "at least one run's")
    figure = blank_figure(8.4, 3.8)
    batch, validation = figure.subplots(1, 2)
    looks, budgets = family_looks(curve.family for curve in curves), sorted({curve.budget for curve in curves})
    for curve in curves:
        colour, marker = looks[curve.family]
        strength = 0.25 + 0.6 * (budgets.index(curve.budget) + 1) / len(budgets)
        batch.plot(curve.flops, curve.train_loss, color=colour, alpha=strength, lw=0.8)
        look = {"color": colour, "marker": marker, "ms": 3, "alpha": strength, "lw": 0.8}
        validation.plot(curve.validated_at, curve.bits_per_byte, **look)
    for axis, title in ((batch, "training batch (nats per token)"), (validation, "validation (bits per byte)")):
        axis.set_title(title, fontsize=10)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
        axis.yaxis.set_minor_formatter(NullFormatter())
        plain_ticks(axis)
        axis.set_xlabel("training compute spent (FLOPs)", fontsize=9)
        axis.grid(True, which="major", color="0.9", lw=0.7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    draw_legend(figure, looks)
    caption = (
        "Losses against the FLOPs spent so far, a line for each run, those of larger budgets stronger. A training loss "
        "is of one step's batch; the validation's is of the same windows for every run."
    )
    return save_figure(figure, path, caption, [curve.run for curve in curves])


def plot_balance_over_time(curves: Sequence[BalanceCurve], path: Path, families: Iterable[str] = ()) -> ReportFigure:
    """Draw MaxVio and the entropy of the loads over the schedule, a line for each run.

    Args:
        curves: of the runs with a router.
        path: of the PNG.
        families: all of the study, so that each has the colour it has elsewhere; by default those of the curves.

    Raises:
        ValueError: no curves.
    """
    require(bool(curves), "curves", curves, "at least one run with a router")
    figure = blank_figure(8.4, 3.4)
    violation, entropy = figure.subplots(1, 2)
    looks = family_looks([*families, *(curve.family for curve in curves)])
    for curve in curves:
        colour = looks[curve.family][0]
        violation.plot(curve.share, curve.max_violation, color=colour, alpha=0.6, lw=0.9)
        entropy.plot(curve.share, curve.load_entropy, color=colour, alpha=0.6, lw=0.9)
    for axis, title in ((violation, "MaxVio of one batch"), (entropy, "entropy of the loads / log experts")):
        axis.set_title(title, fontsize=10)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_xlabel("share of the schedule", fontsize=9)
        axis.grid(True, color="0.9", lw=0.7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    routed = {curve.family for curve in curves}
    draw_legend(figure, {family: look for family, look in looks.items() if family in routed})
    caption = (
        "Balance over the schedule, a line for each run, mean over layers: MaxVio (the busiest expert's load over the "
        "mean load, less 1; even: 0) and the entropy of the loads over its maximum (even: 1), of single batches."
    )
    return save_figure(figure, path, caption, [curve.run for curve in curves])
