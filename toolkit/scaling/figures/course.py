"""The report's figures over the course of training: losses by FLOPs, balance, and each expert's load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from toolkit.checks import require
from toolkit.scaling.figures.style import blank_figure, draw_legend, family_looks, plain_ticks, save_figure, tick_text
from toolkit.scaling.report_figure import ReportFigure
from toolkit.scaling.run_records import BalanceCurve, Floats, LossCurve


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


def plot_expert_load(load: Mapping[str, Floats], steps: Floats, path: Path, run: str) -> ReportFigure:
    """Draw each expert's share of the assignments over training, a heat map for each MoE layer.

    Args:
        load: for each layer's name, shares (records, experts); each record sums to 1.
        steps: (records,), ascending, the training step of each record.
        path: of the PNG.
        run: the name of the run shown.

    Raises:
        ValueError: no layers, shapes that do not fit, or records that do not sum to 1.
    """
    require(bool(load), "load", dict(load), "at least one layer's record")
    for name, shares in load.items():
        require(
            shares.ndim == 2 and len(shares) == len(steps) >= 2,
            f"load[{name!r}].shape",
            shares.shape,
            f"(records, experts) with records = len(steps) = {len(steps)}, at least 2",
        )
        require(np.allclose(shares.sum(axis=1), 1, atol=1e-3), f"load[{name!r}]", shares, "shares that sum to 1")
    figure = blank_figure(7.2, 0.8 + sum(max(1.0, 0.2 * shares.shape[1]) for shares in load.values()))
    axes = np.atleast_1d(figure.subplots(len(load), 1, sharex=True))
    for axis, (name, shares) in zip(axes, load.items(), strict=True):
        _draw_load(figure, axis, name, shares, np.asarray(steps, dtype=np.float64))
    axes[-1].set_xlabel("training step", fontsize=9)
    caption = (
        f"Expert load over training in run `{run}`: each expert's share of the token assignments. White is "
        "perfect balance, 1/E with E experts, marked on the colour bar."
    )
    return save_figure(figure, path, caption, [run])


def _draw_load(figure: Figure, axis: Axes, name: str, shares: Floats, steps: Floats) -> None:
    """Draw one layer's heat map with its colour bar."""
    experts = shares.shape[1]
    middle = (steps[1:] + steps[:-1]) / 2
    edges = np.concatenate([[2 * steps[0] - middle[0]], middle, [2 * steps[-1] - middle[-1]]])
    balance = 1 / experts
    norm = TwoSlopeNorm(balance, vmin=0, vmax=max(2 * balance, float(shares.max())))
    axis.invert_yaxis()  # expert 0 at the top, as in the other figures of experts
    image = axis.pcolormesh(edges, np.arange(experts + 1) - 0.5, shares.T, cmap="RdBu_r", norm=norm)
    axis.set_title(name, fontsize=9, loc="left")
    axis.set_ylabel("expert", fontsize=9)
    axis.yaxis.set_major_locator(MaxNLocator(min(8, experts), integer=True))
    axis.tick_params(labelsize=8)
    bar = figure.colorbar(image, ax=axis, pad=0.015, ticks=[0, balance, norm.vmax])
    bar.ax.set_yticklabels(["0", f"1/E = {balance:.3g}", f"{norm.vmax:.2g}"], fontsize=8)
    bar.set_label("share", fontsize=9)
