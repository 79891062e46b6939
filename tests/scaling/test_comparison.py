"""Arms held against a baseline: the words follow the made-up truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from synthetic_study import run_result

from toolkit.scaling import RunResult
from toolkit.scaling.comparison import compare, findings
from toolkit.scaling.course import RouterCourse

LUCK = np.random.default_rng(0).normal(0, 0.05, 9)


def study(means: Mapping[str, float], *, seeds: int = 5, noise: float = 0.002) -> list[RunResult]:
    """Runs around each arm's mean: of one seed all have its luck, and each a little of its own."""
    rng = np.random.default_rng(1)
    return [
        run_result(name, 1e10, 24, seed, mean + LUCK[seed] + noise * rng.standard_normal())
        for name, mean in means.items()
        for seed in range(seeds)
    ]


def told(means: Mapping[str, float], names: Sequence[str] | None = None, *, seeds: int = 5) -> list[str]:
    return findings(compare(study(means, seeds=seeds), "base", {}, names or list(means)), "base")


def test_what_is_better_worse_and_undecided_is_said() -> None:
    best, below, above, undecided, chance = told({"base": 2.5, "good": 2.4, "bad": 2.6, "same": 2.5003})
    assert "lowest mean is that of `good`" in best
    assert below.startswith("Below `base`: `good` (-0.")
    assert above.startswith("Above `base`: `bad` (+0.")
    assert "`same`" in undecided
    assert "Of 3 such intervals 0.15 " in chance
    assert "`good` and `bad`" in chance


def test_no_arm_may_be_better() -> None:
    lines = told({"base": 2.5, "bad": 2.6})
    assert "Below `base`: none." in lines
    assert "Undecided, the interval holds 0: none." in lines


def test_one_seed_supports_no_claim() -> None:
    assert "One seed supports no claim" in told({"base": 2.5, "bad": 2.6}, seeds=1)[-1]


@pytest.mark.parametrize("names", [["good"], ["base"]])
def test_nothing_to_compare(names: list[str]) -> None:
    (line,) = told({"base": 2.5, "good": 2.4}, names)
    assert line.startswith("Nothing to compare: there are no finished runs of `base`")


def test_an_arm_with_one_seed_is_neither_better_nor_undecided() -> None:
    rows = study({"base": 2.5, "good": 2.4, "young": 2.3})
    rows = [row for row in rows if row.family != "young" or row.seed == 0]
    lines = findings(compare(rows, "base", {}, ["base", "good", "young"]), "base")
    assert not any("`young`" in line for line in lines[1:])


def test_families_come_in_the_order_asked_for_and_those_without_runs_not_at_all() -> None:
    arms = compare(study({"base": 2.5, "good": 2.4}), "base", {}, ["none", "good", "base"])
    assert [arm.family for arm in arms] == ["good", "base"]
    assert [arm.difference is None for arm in arms] == [False, True]


def test_health_is_the_mean_over_seeds_at_a_share_of_each_run_s_own_schedule() -> None:
    rows = study({"base": 2.5}, seeds=2)  # of 1000 steps
    courses = {row.run: RouterCourse({"max_violation": {10: 1.0 + row.seed, 250: 3.0 + row.seed}}) for row in rows}
    (arm,) = compare(rows, "base", courses, ["base"])
    assert arm.health("max_violation", 0.25) == 3.5
    assert arm.health("max_violation", 0.01) == 1.5
    assert math.isnan(arm.health("dropped_share"))
    assert arm.seconds == 10.0
    assert arm.step_seconds == 0.01
