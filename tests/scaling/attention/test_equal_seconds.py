"""Loss in a given time: exact for a power law of time, a run's own at its own time, seeds kept apart."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from synthetic_study import run_result

from toolkit.scaling import RunResult
from toolkit.scaling.attention.equal_seconds import loss_in_time


def power_law(times: tuple[float, ...] = (2.0, 5.0, 11.0), seeds: int = 3) -> list[RunResult]:
    """Bits per byte = (4 + seed) * seconds ** -0.2."""
    return [
        run_result("a", 1e9 * time, 24, seed, (4 + seed) * time**-0.2, seconds=time)
        for time in times
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(("seconds", "outside"), [(2.0, False), (3.3, False), (8.0, False), (1.0, True), (30.0, True)])
def test_a_power_law_is_read_off_exactly_between_and_beyond_runs(seconds: float, outside: bool) -> None:
    found = loss_in_time(power_law(), seconds)
    assert found.by_seed == pytest.approx({seed: (4 + seed) * seconds**-0.2 for seed in range(3)})
    assert found.extrapolated == outside


def test_at_a_run_s_own_time_it_is_the_run_s_loss() -> None:
    rows = [replace(row, bits_per_byte=row.bits_per_byte + 0.1 * math.sin(row.seconds)) for row in power_law()]
    found = loss_in_time(rows, 5.0)
    assert found.by_seed == {row.seed: row.bits_per_byte for row in rows if row.seconds == 5}


def test_one_budget_tells_of_its_own_time_alone() -> None:
    rows = power_law(times=(5.0,))
    assert loss_in_time(rows, 5.0).by_seed == {row.seed: row.bits_per_byte for row in rows}
    assert loss_in_time(rows, 4.0).by_seed == {}
    assert math.isnan(loss_in_time(rows, 4.0).mean.value)


def test_differences_are_of_the_seeds_that_both_have() -> None:
    full, arm = power_law(seeds=2), [replace(row, bits_per_byte=row.bits_per_byte * 1.5) for row in power_law()]
    difference = loss_in_time(arm, 5.0).less(loss_in_time(full, 5.0))
    assert difference.seeds == 2
    assert difference.value == pytest.approx(sum((4 + seed) * 5.0**-0.2 / 2 for seed in range(2)) / 2)


def test_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="seconds=0"):
        loss_in_time(power_law(), 0)
