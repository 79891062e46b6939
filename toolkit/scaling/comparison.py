"""Arms held against a baseline: what each reached, how it routed, and what the numbers support."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from toolkit.scaling.claims import join_words
from toolkit.scaling.course import RouterCourse
from toolkit.scaling.results import RunResult
from toolkit.scaling.seeds import SeedMean, holm, mean_over_seeds, paired_difference


@dataclass(frozen=True)
class ArmResult:
    """One family's finished runs at one budget and width.

    Attributes:
        family: its name.
        rows: its runs, one a seed.
        loss: bits per byte.
        difference: bits per byte less the baseline's, by seed; None for the baseline.
        courses: of those of its runs that have a router.
    """

    family: str
    rows: tuple[RunResult, ...]
    loss: SeedMean
    difference: SeedMean | None
    courses: tuple[tuple[RunResult, RouterCourse], ...]

    def health(self, tag: str, fraction: float = 1.0) -> float:
        """A curve's value at a fraction of the schedule, mean over layers and seeds; nan where there is none."""
        values = [course.at(tag, fraction * row.steps) for row, course in self.courses]
        values = [value for value in values if not math.isnan(value)]
        return fmean(values) if values else math.nan

    @property
    def step_seconds(self) -> float:
        """Of one step by itself."""
        return fmean(row.seconds / row.steps for row in self.rows)

    @property
    def seconds(self) -> float:
        """Of a run's steps, each as long as one by itself."""
        return fmean(row.seconds for row in self.rows)


def compare(
    rows: Sequence[RunResult], baseline: str, courses: Mapping[str, RouterCourse], families: Sequence[str]
) -> list[ArmResult]:
    """The finished families of one budget and width, in the order of ``families``.

    Args:
        rows: runs with finite losses.
        baseline: the family that others are held against.
        courses: by run name.
        families: the order.
    """
    reference = [row for row in rows if row.family == baseline]
    found = []
    for family in families:
        mine = tuple(row for row in rows if row.family == family)
        if mine:
            difference = None if family == baseline else paired_difference(mine, reference)
            loss = mean_over_seeds([row.bits_per_byte for row in mine])
            routed = tuple((row, courses[row.run]) for row in mine if courses.get(row.run, RouterCourse({})).curves)
            found.append(ArmResult(family, mine, loss, difference, routed))
    return found


def findings(arms: Sequence[ArmResult], baseline: str) -> list[str]:
    """What the differences to the baseline support, a sentence or two each.

    Args:
        arms: those that may be compared, the baseline among them.
        baseline: its name.
    """
    judged = [(arm.family, arm.difference) for arm in arms if arm.difference is not None and arm.difference.seeds > 0]
    if not any(arm.family == baseline for arm in arms) or not judged:
        return [f"Nothing to compare: there are no finished runs of `{baseline}` beside another family's."]
    best = min(arms, key=lambda arm: arm.loss.value)
    lines = [f"The lowest mean is that of `{best.family}`, {best.loss.value:.3f} bits per byte."]
    if all(difference.p_value is None for _, difference in judged):
        return [*lines, "One seed supports no claim about any difference."]
    sides = ((-1, f"below `{baseline}`"), (1, f"above `{baseline}`"), (0, "undecided, the interval holds 0"))
    for side, phrase in sides:
        named = [
            f"`{family}` ({difference.value:+.3f})"
            for family, difference in judged
            if difference.side == side and difference.half is not None
        ]
        lines.append(f"{phrase[0].upper()}{phrase[1:]}: {join_words(named) if named else 'none'}.")
    tested = [(family, each.p_value) for family, each in judged if each.p_value is not None]
    kept = [f"`{family}`" for (family, _), held in zip(tested, holm([p for _, p in tested]), strict=True) if held]
    lines.append(
        f"Of {len(tested)} such intervals {0.05 * len(tested):.2g} would miss 0 by chance if no arm differed; after "
        f"Holm's correction for that, these still differ: {join_words(kept) if kept else 'none'}."
    )
    return lines
