"""Branches: which of a study's runs are the beginning of another, so that one long run yields several token counts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from toolkit.checks import require
from toolkit.scaling.plan.runs import PlannedRun


@dataclass(frozen=True)
class BranchPoint:
    """Where a run leaves another.

    Attributes:
        trunk: name of the run that it begins as.
        step: the trunk's step after which it decays.
    """

    trunk: str
    step: int


def branches(runs: Sequence[PlannedRun]) -> dict[str, BranchPoint]:
    """Where each run that can begin as another leaves it, by run name; trunks, and runs without one, are not in it.

    Runs that differ in nothing but their budget and so their steps, with ``schedule="wsd"`` and a warmup of as many
    steps, are the same until they decay. Of each such group the longest is the trunk, and the others leave it where
    their decays start. Where the batch, the learning rate or the weight decay follows from a run's tokens, no two runs
    have a beginning in common.

    Runs of one trunk are not independent: they share initialisation, the order of the data and most of their training,
    and so their errors. Whoever resamples runs, for an interval or a test, must take all runs of a trunk or none.

    Source: Hu et al. 2024, MiniCPM (arXiv 2404.06395), section 4; Hägele et al. 2024 (arXiv 2405.18392).
    """
    groups: dict[Hashable, list[PlannedRun]] = {}
    for run in runs:
        if run.training.schedule == "wsd":
            groups.setdefault(_beginning(run), []).append(run)
    points = {}
    for group in groups.values():
        trunk = max(group, key=lambda run: (run.training.decay_start, run.training.steps))
        others = [run for run in group if run is not trunk and run.training.decay_start > 0]
        points.update({run.name: BranchPoint(trunk.name, run.training.decay_start) for run in others})
    return points


def require_branches(runs: Sequence[PlannedRun]) -> None:
    """Refuse a plan that is to be trained with branches and has none.

    Raises:
        ValueError: saying what two runs would have to have in common.
    """
    right = (
        "False where no two runs have one beginning: it takes training.schedule='wsd', training.warmup_steps, two "
        "budgets for one width, and a batch and a weight decay that do not follow from the tokens"
    )
    require(len(branches(runs)) > 0, "grid.branch", True, right)


def flops_saved(runs: Sequence[PlannedRun]) -> float:
    """Training FLOPs, ``exact``, of the steps that branches take over from their trunks."""
    by_name = {run.name: run for run in runs}
    return sum(_share(by_name[name], point) * by_name[name].flops["exact"] for name, point in branches(runs).items())


def flops_trained(runs: Sequence[PlannedRun]) -> float:
    """Training FLOPs, ``exact``, of the trunks and of the branches' decays: what is really spent on ``runs``.

    One by one they cost ``sum(run.flops["exact"])``, which is also what each of them counts as its own: equal compute
    is compared whichever way the runs were made.
    """
    return sum(run.flops["exact"] for run in runs) - flops_saved(runs)


def trunks_first(runs: Sequence[PlannedRun], points: Mapping[str, BranchPoint]) -> list[PlannedRun]:
    """``runs`` in their order, but each trunk right before the first of its branches where it would come after it.

    Args:
        runs: some of a study's.
        points: of all of them. A branch whose trunk is not among ``runs`` stays where it is.
    """
    by_name = {run.name: run for run in runs}
    ordered: dict[str, PlannedRun] = {}
    for run in runs:
        trunk = by_name.get(points[run.name].trunk) if run.name in points else None
        for each in (trunk, run):
            if each is not None:
                ordered.setdefault(each.name, each)
    return list(ordered.values())


def _beginning(run: PlannedRun) -> Hashable:
    """What a run is before its decay."""
    return run.family, run.model, tuple(run.training.until_decay.items())


def _share(run: PlannedRun, point: BranchPoint) -> float:
    """Of its steps, those that are its trunk's."""
    return point.step / run.training.steps
