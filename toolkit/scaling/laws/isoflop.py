"""IsoFLOP curves: for each family and budget, the model size that reaches the lowest loss.

Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2): a parabola of loss in log size
through the runs of one budget. Losses are validation bits per byte; every run is evaluated on the
same windows, so most of the error of their level is shared and cancels where runs are compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.checks import require
from toolkit.scaling.origin import require_one_corpus
from toolkit.scaling.results import RunResult

Array = NDArray[np.float64]
Method = Literal["parabola", "best cell"]


@dataclass(frozen=True)
class Cell:
    """The runs of one family, budget and dim, which differ in their seed alone."""

    family: str
    budget: float  # FLOPs
    dim: int
    size: int  # active parameters
    loss: float  # bits per byte, mean over seeds
    seconds: float  # mean over seeds
    seeds: int  # how many
    runs: tuple[str, ...]


@dataclass(frozen=True)
class SeedNoise:
    """The standard deviation of one run's loss over seeds, pooled over all cells with two or more."""

    sd: float  # bits per byte
    degrees_of_freedom: int


@dataclass(frozen=True)
class IsoFLOPMinimum:
    """The lowest loss of one family at one budget.

    ``method`` says where it comes from: the vertex of the parabola, or the best measured cell where
    there are fewer than 3 sizes, the parabola is not convex, or its vertex is outside the sizes
    measured. A vertex can lie below every measured cell: it is the loss expected at a size that
    was not trained. ``at_edge`` says that the best measured cell is the smallest or the largest
    size, so that the measurements do not enclose the minimum, by whichever method it was found.
    """

    family: str
    budget: float  # FLOPs
    size: float  # active parameters
    loss: float  # bits per byte
    seconds: float  # at this size, interpolated log-log between the cells beside it
    method: Method
    at_edge: bool
    sizes: int  # how many were measured
    best: Cell  # the lowest measured cell
    coefficients: tuple[float, float, float] | None  # of log(size)^2, log(size), 1; None without a fit


def finite_runs(rows: Sequence[RunResult]) -> tuple[list[RunResult], list[RunResult]]:
    """Part the runs with a finite validation loss from those that diverged."""
    finite = [row for row in rows if math.isfinite(row.bits_per_byte)]
    return finite, [row for row in rows if not math.isfinite(row.bits_per_byte)]


def cells_of(rows: Sequence[RunResult]) -> list[Cell]:
    """Average the runs over seeds: one cell per (family, budget, dim), by family, budget and size.

    Families keep the order of their first run.

    Raises:
        ValueError: a run's loss is not finite (see :func:`finite_runs`), the runs of a cell
            differ in their active parameters, or runs were trained on different corpora.
    """
    require_one_corpus(rows)
    groups: dict[tuple[str, float, int], list[RunResult]] = {}
    for row in rows:
        require(math.isfinite(row.bits_per_byte), f"bits_per_byte of {row.run}", row.bits_per_byte, "finite")
        groups.setdefault((row.family, row.budget, row.dim), []).append(row)
    families = list(dict.fromkeys(row.family for row in rows))
    cells = [_cell(group) for group in groups.values()]
    return sorted(cells, key=lambda cell: (families.index(cell.family), cell.budget, cell.size))


def _cell(group: list[RunResult]) -> Cell:
    first = group[0]
    sizes = {row.active_parameters for row in group}
    require(len(sizes) == 1, f"active_parameters of {first.run} and its other seeds", sizes, "the same")
    return Cell(
        family=first.family,
        budget=first.budget,
        dim=first.dim,
        size=first.active_parameters,
        loss=float(np.mean([row.bits_per_byte for row in group])),
        seconds=float(np.mean([row.seconds for row in group])),
        seeds=len(group),
        runs=tuple(row.run for row in group),
    )


def seed_noise(rows: Sequence[RunResult]) -> SeedNoise | None:
    """Pool the variance over seeds within cells; None where every cell has one seed.

    Returns sqrt(sum of squared deviations from the cell means / degrees of freedom), with one
    degree of freedom for each run beyond its cell's first. It takes the noise to be the same at
    every size, budget and family.
    """
    loss_of = {row.run: row.bits_per_byte for row in rows}
    cells = cells_of(rows)
    squares = sum((loss_of[run] - cell.loss) ** 2 for cell in cells for run in cell.runs)
    freedom = sum(cell.seeds - 1 for cell in cells)
    return SeedNoise(math.sqrt(squares / freedom), freedom) if freedom else None


def parabola(log_sizes: Array, losses: Array) -> Array:
    """Least-squares parabolas through the curves of one budget.

    Args:
        log_sizes: (sizes,), at least 3 different ones.
        losses: (curves, sizes).

    Returns (curves, 3): the coefficients of log(size)^2, log(size) and 1.
    """
    centre = log_sizes.mean()  # centred, or the columns are almost parallel
    a, b, c = np.linalg.pinv(np.vander(log_sizes - centre, 3)) @ losses.T
    return np.stack([a, b - 2 * a * centre, c - b * centre + a * centre**2], axis=1)


def curve_minima(log_sizes: Array, losses: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Find the minimum of each curve: the parabola's vertex, or else the best cell.

    Args:
        log_sizes: (sizes,), ascending.
        losses: (curves, sizes).

    Returns log size, loss, and whether the vertex was taken, each (curves,). The rule is that of
    :class:`IsoFLOPMinimum`.
    """
    best = losses.argmin(axis=1)
    size, loss = log_sizes[best], losses.min(axis=1)
    if len(log_sizes) < 3:
        return size, loss, np.zeros(len(losses), dtype=bool)
    a, b, c = parabola(log_sizes, losses).T
    convex = a > 0
    vertex = -b / np.where(convex, 2 * a, 1.0)
    taken = convex & (vertex >= log_sizes[0]) & (vertex <= log_sizes[-1])
    return np.where(taken, vertex, size), np.where(taken, c + b * vertex / 2, loss), taken


def isoflop_minima(rows: Sequence[RunResult]) -> list[IsoFLOPMinimum]:
    """Find the best size and loss of every family at every budget, in the order of :func:`cells_of`.

    Raises:
        ValueError: as :func:`cells_of`.
    """
    groups: dict[tuple[str, float], list[Cell]] = {}
    for cell in cells_of(rows):
        groups.setdefault((cell.family, cell.budget), []).append(cell)
    return [_minimum(cells) for cells in groups.values()]


def _minimum(cells: list[Cell]) -> IsoFLOPMinimum:
    """Find the minimum of one curve; ``cells`` ascend in size."""
    log_sizes = np.log([cell.size for cell in cells])
    losses = np.array([[cell.loss for cell in cells]])
    size, loss, taken = (values[0] for values in curve_minima(log_sizes, losses))
    best = int(losses[0].argmin())
    a, b, c = parabola(log_sizes, losses)[0] if len(cells) >= 3 else (math.nan,) * 3
    log_seconds = np.interp(size, log_sizes, np.log([cell.seconds for cell in cells]))
    return IsoFLOPMinimum(
        family=cells[0].family,
        budget=cells[0].budget,
        size=float(np.exp(size)) if taken else cells[best].size,
        loss=float(loss),
        seconds=float(np.exp(log_seconds)) if taken else cells[best].seconds,
        method="parabola" if taken else "best cell",
        at_edge=best in (0, len(cells) - 1),
        sizes=len(cells),
        best=cells[best],
        coefficients=(float(a), float(b), float(c)) if len(cells) >= 3 else None,
    )
