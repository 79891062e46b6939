"""Predictions beside what was measured, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.checks import require
from toolkit.scaling.figures.style import blank_figure, draw_legend, family_looks, save_figure
from toolkit.scaling.report_figure import ReportFigure


@dataclass(frozen=True)
class Prediction:
    """A number said beforehand, and what it turned out to be.

    Attributes:
        name: of what was predicted, for instance a run.
        group: what shares a colour, for instance its family.
        predicted, measured: positive, of one unit.
        low, high: the ends of the prediction's interval; None without one.
    """

    name: str
    group: str
    predicted: float
    measured: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Its ends, or the prediction twice."""
        return (
            self.predicted if self.low is None else self.low,
            self.predicted if self.high is None else self.high,
        )


def plot_predictions(predictions: Sequence[Prediction], path: Path, quantity: str = "bits per byte") -> ReportFigure:
    """Draw each prediction with its interval against the measurement; on the dotted line both are the same.

    Raises:
        ValueError: no predictions.
    """
    require(bool(predictions), "predictions", predictions, "at least one")
    figure = blank_figure(4.8, 4.6)
    axis = figure.subplots()
    looks = family_looks(one.group for one in predictions)
    for group, (colour, marker) in looks.items():
        mine = [one for one in predictions if one.group == group]
        values = [one.predicted for one in mine]
        bars = [[abs(one.predicted - one.interval[side]) for one in mine] for side in (0, 1)]
        look: dict[str, Any] = {"fmt": marker, "color": colour, "capsize": 3, "ms": 6, "elinewidth": 1}
        axis.errorbar([one.measured for one in mine], values, yerr=bars, **look)
    ends = [each for one in predictions for each in (one.measured, *one.interval)]
    axis.plot([min(ends), max(ends)], [min(ends), max(ends)], ":", color="0.4", lw=1)
    axis.set_xlabel(f"measured ({quantity})", fontsize=9)
    axis.set_ylabel(f"predicted ({quantity})", fontsize=9)
    axis.grid(True, color="0.9", lw=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    draw_legend(figure, looks)
    caption = "Predicted against measured; on the dotted line both are the same. Bars are the predictions' intervals."
    return save_figure(figure, path, caption, dict.fromkeys(one.name for one in predictions))
