"""A study's plan as it is printed: a row for each run, what they add up to, and what is short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from toolkit.scaling.claims import number
from toolkit.scaling.plan import PlannedRun, data_warnings, grid_warnings
from toolkit.scaling.plan.branches import branches, flops_trained
from toolkit.scaling.study import Study, largest_step

COLUMNS = (
    *("run", "params", "active", "layers", "tokens", "epochs", "steps", "batch", "rate", "decay", "FLOPs", "/budget"),
    *("MB", "time s"),
)
"""Rate and decay are the peak learning rate and AdamW's weight decay."""


def print_plan(
    study: Study, console: Console, seconds: Mapping[str, float], runs: Sequence[PlannedRun] | None = None
) -> None:
    """Every run's parameters, tokens, FLOPs, memory and time, what they add up to, and what is short.

    Args:
        study: whose runs they are.
        console: where to print.
        seconds: isolated seconds of one step, by run name; empty if unknown.
        runs: which; None for the grid's.
    """
    runs, train = study.runs if runs is None else runs, study.prepared.train
    table = Table(title=f"{len(runs)} runs on {len(train):,} training tokens", expand=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
    for run in runs:
        table.add_row(*_row(study, run), f"{run.training.steps * seconds[run.name]:.0f}" if seconds else "?")
    console.print(table)
    for line in (*data_warnings(runs, len(train)), *grid_warnings(study.runs)):
        console.print(f"note: {line}", highlight=False)
    flops = sum(run.flops["exact"] for run in runs)
    trained = f", of which {flops_trained(runs):.3g} are trained and the rest shared" if study.grid.branch else ""
    console.print(f"{flops:.3g} FLOPs in all{trained}; {_duration(study, runs, seconds)}", highlight=False)


def _row(study: Study, run: PlannedRun) -> tuple[str, ...]:
    """All but the last of :data:`COLUMNS`."""
    return (
        run.name,
        f"{run.cost.total_parameters:,}",
        f"{run.cost.total_active_parameters:,}",
        str(len(run.model.blocks)),
        f"{run.tokens:,}",
        f"{study.prepared.epochs(run.tokens):.2f}",
        f"{run.training.steps:,}",
        str(run.training.batch_size),
        f"{run.training.learning_rate:.2g}",
        f"{run.training.weight_decay:.2g}",
        number(run.flops["exact"]),
        f"{run.flops['exact'] / run.budget:.4f}",
        f"{run.memory(study.parallel).training / 1e6:.0f}",
    )


def _duration(study: Study, runs: Sequence[PlannedRun], seconds: Mapping[str, float]) -> str:
    """How long they take side by side; steps that branches share are trained once."""
    if not seconds:
        return f"time unknown: a step takes up to {largest_step(runs):.1e} FLOPs, too many to try out on this CPU"
    points = branches(runs) if study.grid.branch else {}
    shared = {name: point.step for name, point in points.items()}
    total = sum((run.training.steps - shared.get(run.name, 0)) * seconds[run.name] for run in runs)
    return (
        f"training takes about {total / study.resolved_workers / 60:.1f} minutes with {study.resolved_workers} "
        f"runs at once ({total / 60:.1f} one by one; each model timed for a few throw-away steps)"
    )
