"""What TensorBoard shows of a whole sweep: its runs in one HParams view, families on one chart, the report's figures.

``tensorboard --logdir <study>/runs`` reads the folder of the runs. Each run has written its own curves and settings;
here is added what only the finished table tells.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.checks import require
from toolkit.files import replacing
from toolkit.scaling.report_figure import ReportFigure
from toolkit.scaling.results import RunResult

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import SummaryWriter

STUDY = "_study"
"""The run, as TensorBoard calls a folder, that holds what is of no single run."""

METRICS: Mapping[str, Callable[[RunResult], float]] = {
    "hp/bits_per_byte": lambda row: row.bits_per_byte,
    "hp/train_loss": lambda row: row.train_loss,
    "hp/seconds": lambda row: row.seconds,
    "hp/tokens": lambda row: row.tokens,
    "hp/flops": lambda row: row.flops_spent,
    "hp/parameters": lambda row: row.parameters,
    "hp/active_parameters": lambda row: row.active_parameters,
    "hp/max_violation": lambda row: row.max_violation,
}
"""Columns of the HParams view and where they stand in a run's row. A run of which one is nan has no such value."""

_SUFFIX = ".sweep"  # of event files written here beside a run's own
_FIRST = f"events.out.tfevents.0{_SUFFIX}"  # which sorts before any that a clock has named
_UNITS = {"gigaflops": 1e9, "megaflops": 1e6, "flops": 1.0}  # TensorBoard's axis is a whole number


def write_sweep_board(
    folder: Path,
    rows: Sequence[RunResult],
    figures: Sequence[ReportFigure] = (),
    others: Sequence[RunResult] = (),
) -> None:
    """Write the sweep's TensorBoard events beside its runs', in place of those written before.

    - HParams: the settings that vary, with their values, and ``METRICS``, in each run's own folder. TensorBoard takes
      the columns from the declaration that it meets first in whichever run it looks at first, and training declares one
      metric; so that of the sweep goes into every run, in a file that is read before training's.
    - Custom scalars: *study*, best bits per byte against FLOPs, a series for each family, all on one chart.
    - Images: the figures, their captions as text.

    Args:
        folder: of the study; events go below its ``runs``.
        rows: finished runs; those without a folder of their own (a table from elsewhere) have no HParams.
        figures: of the report.
        others: finished runs of the same folder (a search, a prediction) that have a place among the HParams and none
            in the chart.

    Raises:
        ValueError: no rows, or two budgets that TensorBoard's axis cannot tell apart.
    """
    require(bool(rows), "rows", rows, "at least one finished run")
    every = [*rows, *others]
    runs, declared = folder / "runs", _declaration(every)
    for row in every:
        if (runs / row.run).is_dir():
            _write_metrics(runs / row.run, row)
            _write_first(runs / row.run, declared)
    shutil.rmtree(runs / STUDY, ignore_errors=True)
    with _writer(runs / STUDY) as board:
        _write_families(board, rows)
        _write_figures(board, figures)


def _writer(folder: Path) -> SummaryWriter:
    """A writer whose file takes the place of the one that was written here before."""
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob(f"events.out.tfevents.*{_SUFFIX}"):
        old.unlink()
    return SummaryWriter(str(folder), filename_suffix=_SUFFIX)


def _declaration(rows: Sequence[RunResult]) -> Summary:
    """Which settings and metrics are columns of the HParams view, and what values the settings take."""
    from torch.utils.tensorboard.summary import hparams

    settings = ("family", "budget", "dim", "seed", "learning_rate", "steps")  # as the runs name theirs
    discrete = {name: sorted({getattr(row, name) for row in rows}) for name in ("family", "budget", "dim", "seed")}
    first = {name: getattr(rows[0], name) for name in settings}
    experiment, _, _ = hparams(first, dict.fromkeys(METRICS, math.nan), discrete)
    return experiment


def _write_first(folder: Path, summary: Summary) -> None:
    """A file of events that stands before the run's own."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    with replacing(folder / _FIRST) as temporary, temporary.open("wb") as file:
        records = RecordWriter(file)
        for event in (Event(file_version="brain.Event:2"), Event(summary=summary)):
            records.write(event.SerializeToString())


def _write_metrics(folder: Path, row: RunResult) -> None:
    """The run's values, at the step that it ended at."""
    with _writer(folder) as board:
        for name, value in ((name, read(row)) for name, read in METRICS.items()):
            if not math.isnan(value):
                board.add_scalar(name, value, row.steps)


def _write_families(board: SummaryWriter, rows: Sequence[RunResult]) -> None:
    """Each family's best bits per byte at each budget, as a series over FLOPs, and the chart that has them all."""
    unit = _unit({row.budget for row in rows})
    tags = {family: f"study/bits_per_byte_by_{unit}/{family}" for family in dict.fromkeys(row.family for row in rows)}
    for family, tag in tags.items():
        losses = [(row.budget, row.bits_per_byte) for row in rows if row.family == family]
        for budget in sorted({budget for budget, _ in losses}):
            known = [loss for at, loss in losses if at == budget and not math.isnan(loss)]
            best = min(known, default=math.nan)  # nan where every run diverged
            board.add_scalar(tag, best, round(budget / _UNITS[unit]))
    names = [f"^{re.escape(tag)}$" for tag in tags.values()]  # TensorBoard takes them for patterns
    board.add_custom_scalars({"study": {f"best bits per byte against {unit}": ["Multiline", names]}})


def _unit(budgets: set[float]) -> str:
    """The largest unit in which the budgets are different whole numbers."""
    for name, unit in _UNITS.items():
        if len({round(budget / unit) for budget in budgets}) == len(budgets):
            return name
    require(False, "budgets", sorted(budgets), "at least one FLOP apart")
    raise AssertionError


def _write_figures(board: SummaryWriter, figures: Sequence[ReportFigure]) -> None:
    """Each PNG as an image, its caption as text."""
    from matplotlib.image import imread

    for figure in figures:
        board.add_image(f"figures/{figure.path.stem}", imread(figure.path), dataformats="HWC")
        board.add_text(f"figures/{figure.path.stem}", figure.caption)
