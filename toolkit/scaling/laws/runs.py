"""What laws over many families are fitted to: a small table of runs, one array a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from toolkit.checks import require, require_choice
from toolkit.scaling.laws.resampling import Strings
from toolkit.scaling.laws.surface import PER_PARAMETER, Floats, require_sound
from toolkit.scaling.results import COUNTS, RunResult, size


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of one or of many families; every column is (runs,). Make it with :meth:`of`.

    Attributes:
        active: parameters that one token uses, N.
        tokens: of training, D.
        loss: in any unit that all share.
        experts: the expansion rate E: routed experts over those of one token's feed-forward; 1 for a dense model.
        granularity: G, how many experts one feed-forward of the dense model is cut into; 1 for a dense model.
        total: all parameters, counted as ``active`` are.
        flops: of the whole training.
        family: labels.
        group: labels; runs of one group share their errors (the seeds of a cell, the branches of a trunk) and are
            drawn, or held out, together.

    Raises:
        ValueError: if a column is of another length or holds a number that is not positive and finite, there are no
            runs, or ``total`` is below ``active``.
    """

    active: Floats
    tokens: Floats
    loss: Floats
    experts: Floats
    granularity: Floats
    total: Floats
    flops: Floats
    family: Strings
    group: Strings

    @classmethod
    def of(
        cls,
        active: npt.ArrayLike,
        tokens: npt.ArrayLike,
        loss: npt.ArrayLike,
        *,
        experts: npt.ArrayLike = 1.0,
        granularity: npt.ArrayLike = 1.0,
        total: npt.ArrayLike | None = None,
        flops: npt.ArrayLike | None = None,
        family: str | Sequence[str] = "dense",
        group: Sequence[str] | None = None,
    ) -> Runs:
        """Runs from columns, of which one number stands for all runs.

        Where they are not given, ``total`` is ``active``, ``flops`` 6 ``active`` ``tokens``, and each run a group.
        """
        n, d = np.asarray(active, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        many = n.shape
        require(d.shape in ((), many), "tokens.shape", d.shape, f"{many}, as active, or one number")

        def column(values: npt.ArrayLike | None, otherwise: npt.ArrayLike) -> Floats:
            given = np.asarray(otherwise if values is None else values, dtype=np.float64)
            return np.full(many, given) if given.ndim == 0 else given

        return cls(
            active=n,
            tokens=column(d, d),
            loss=column(loss, 1.0),
            experts=column(experts, 1.0),
            granularity=column(granularity, 1.0),
            total=column(total, n),
            flops=column(flops, PER_PARAMETER * n * d),
            family=np.full(many, family) if isinstance(family, str) else np.asarray(family, dtype=np.str_),
            group=np.arange(n.size).astype(np.str_) if group is None else np.asarray(group, dtype=np.str_),
        )

    def __post_init__(self) -> None:
        require(self.active.ndim == 1 and len(self.active) > 0, "active.shape", self.active.shape, "(runs,), 1 or more")
        for column in fields(self):
            values = getattr(self, column.name)
            require(values.shape == self.active.shape, f"{column.name}.shape", values.shape, "(runs,), as active")
            if values.dtype.kind == "f":
                require_sound(column.name, values)
        for at in np.flatnonzero(self.total < self.active)[:1].tolist():
            require(False, f"total[{at}]", float(self.total[at]), f"at least active[{at}]={self.active[at]:g}")

    def __len__(self) -> int:
        return len(self.active)

    @property
    def sparsity(self) -> Floats:
        """S = 1 - active / total, 0 for a dense model."""
        return 1 - self.active / self.total

    @property
    def budgets(self) -> Floats:
        """The budget of each run, (runs,): the mean FLOPs of those that lie within 2% of their neighbours."""
        order = np.argsort(self.flops)
        starts = np.diff(np.log(self.flops[order]), prepend=-np.inf) > np.log(1.02)
        label = np.empty(len(self), dtype=np.int64)
        label[order] = np.cumsum(starts) - 1
        means: Floats = np.bincount(label, self.flops) / np.bincount(label)
        return means[label]

    @property
    def families(self) -> tuple[str, ...]:
        """Each family once, in the order of its first run."""
        return tuple(dict.fromkeys(self.family.tolist()))

    def where(self, kept: npt.NDArray[np.bool_]) -> Runs:
        """The runs that ``kept`` (runs,) is true of.

        Raises:
            ValueError: if there are none.
        """
        return Runs(**{column.name: getattr(self, column.name)[kept] for column in fields(self)})


def runs_of(
    rows: Sequence[RunResult],
    architecture: Mapping[str, tuple[float, float]],
    convention: str = "active_with_head",
    *,
    branched: bool = False,
) -> Runs:
    """Finished runs as a table for the laws; losses are bits per byte.

    Args:
        rows: with finite losses, see :func:`toolkit.scaling.laws.isoflop.finite_runs`.
        architecture: of each family, its expansion rate and its granularity.
        convention: what counts as active, of :data:`toolkit.scaling.results.COUNTS` without ``"total"``. Parameters
            that a token leaves unused are added for ``total``, so that a dense model's sparsity is 0 in each.
        branched: whether runs of several budgets were begun from one trunk, as
            :attr:`toolkit.scaling.plan.Grid.branch` does. A group is then all of a family's runs of one width.

    Raises:
        ValueError: for another convention, a family that ``architecture`` lacks, or as :class:`Runs`.
    """
    require_choice("convention", convention, tuple(count for count in COUNTS if count != "total"))
    require(len(rows) > 0, "rows", len(rows), "one run or more")
    missing = sorted({row.family for row in rows} - set(architecture))
    require(not missing, "architecture", f"nothing of {', '.join(missing)}", "given for every family of the runs")
    active = np.array([size(row, convention) for row in rows], dtype=np.float64)
    return Runs.of(
        active,
        [row.tokens for row in rows],
        [row.bits_per_byte for row in rows],
        experts=[architecture[row.family][0] for row in rows],
        granularity=[architecture[row.family][1] for row in rows],
        total=active + [row.parameters - row.active_parameters for row in rows],
        flops=[row.budget for row in rows],
        family=[row.family for row in rows],
        group=[group_of(row, branched) for row in rows],
    )


def group_of(row: RunResult, branched: bool) -> str:
    """What shares its errors with ``row``: the seeds of its cell, or all that may have begun as one trunk."""
    return f"{row.family} {row.dim}" if branched else f"{row.family} {row.budget:g} {row.dim}"
