"""The words follow the numbers: won, lost, undecided, and every limit of the data."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from synthetic_study import run_result, study

from toolkit.scaling.claims import answer, limits, number, times, verdict
from toolkit.scaling.multiplier import ComputeMultiplier, Estimate, compute_multiplier
from toolkit.scaling.results import RunResult

WON = Estimate(1.5, 1.3, 1.7, False, False)
LOST = Estimate(0.8, 0.7, 0.9, False, False)
UNDECIDED = Estimate(1.1, 0.9, 1.3, False, False)
ONE_SEED = Estimate(1.5, None, None, False, False)
UNKNOWN = Estimate(math.nan, 0.0, math.inf, False, False)
UNBOUNDED = Estimate(math.inf, 2.0, math.inf, True, True)


def claim(flops: Estimate, seconds: Estimate, budget: float = 1e12) -> ComputeMultiplier:
    return ComputeMultiplier("moe", "dense", budget, 2.211, flops, 33.0, 2.215, seconds)


@pytest.mark.parametrize(
    ("estimate", "judged", "text"),
    [
        (WON, "won", "1.50 (1.30 to 1.70)"),
        (LOST, "lost", "0.80 (0.70 to 0.90)"),
        (UNDECIDED, "undecided", "1.10 (0.90 to 1.30)"),
        (ONE_SEED, "no interval", "1.50"),
        (UNKNOWN, "unknown", "unknown"),
        (UNBOUNDED, "won", "unbounded (2.00 to unbounded)"),
        (Estimate(1.0, 1.0, 1.2, False, False), "undecided", "1.00 (1.00 to 1.20)"),
    ],
)
def test_verdict_and_words(estimate: Estimate, judged: str, text: str) -> None:
    assert verdict(estimate) == judged
    assert times(estimate) == text


@pytest.mark.parametrize(
    ("flops", "seconds", "expected", "absent"),
    [
        (WON, WON, ["FLOPs: sparsity paid.", "clock: sparsity paid."], "has not won"),
        (WON, LOST, ["FLOPs: sparsity paid.", "clock: sparsity did not pay.", "has not won"], "undecided"),
        (LOST, LOST, ["FLOPs: sparsity did not pay.", "clock: sparsity did not pay."], "sparsity paid"),
        (UNDECIDED, LOST, ["FLOPs: undecided", "clock: sparsity did not pay."], "sparsity paid"),
        (ONE_SEED, ONE_SEED, ["estimate is above 1", "supports no claim"], "sparsity paid"),
        (UNKNOWN, UNKNOWN, ["how much compute `dense` needs for that is unknown", "one budget"], "nan"),
        (UNBOUNDED, WON, ["no amount of compute brings `dense` there"], "inf"),
        (replace(WON, extrapolated=True), WON, ["times the compute for that (an extrapolation)"], "nan"),
    ],
)
def test_answer_says_what_the_intervals_say(
    flops: Estimate, seconds: Estimate, expected: list[str], absent: str
) -> None:
    (text,) = answer([claim(flops, seconds)])
    for words in ["At 1e12 FLOPs `moe` reached 2.211 bits per byte", "In 33 s", "2.215", *expected]:
        assert words in text
    assert absent not in text


def test_answer_is_for_the_largest_budget() -> None:
    texts = answer([claim(LOST, LOST, 1e13), claim(WON, WON, 3e11)])
    assert len(texts) == 1
    assert "At 1e13 FLOPs" in texts[0]


def test_numbers_are_short() -> None:
    assert [number(value) for value in (3e11, 1.25e12, 0.8437, 120.0)] == ["3e11", "1.25e12", "0.844", "120"]


def said(rows: list[RunResult], **settings) -> str:  # type: ignore[no-untyped-def]
    claims = compute_multiplier(rows, "moe", resamples=200) if any(r.family == "moe" for r in rows) else []
    return "\n".join(limits(rows, claims, **settings))


def test_clean_study_has_only_the_standing_limits() -> None:
    rows = study(gain=2.0, slowdown=1.0, seeds=3, noise=0.001, dims=(24, 32, 48, 64, 96, 128, 192))
    text = said(rows, planned_runs=[row.run for row in rows])
    assert "No run saw its text twice (at most 0.10 epochs)" in text
    assert "3e11 to 3e12 FLOPs" in text
    for absent in ("One seed", "edge", "parabola", "beyond the baseline", "holds 1", "more than once", "Diverged",
                   "did not finish", "more than 1%", "same seeds", "dropped"):  # fmt: skip
        assert absent not in text


def test_one_seed() -> None:
    text = said(study())
    assert "One seed" in text
    assert "no intervals" in text.replace("there are no intervals", "no intervals")


def test_few_degrees_of_freedom_are_said() -> None:
    rows = study(dims=(48, 64, 96))
    rows.append(replace(rows[0], run="again", seed=1, bits_per_byte=rows[0].bits_per_byte + 0.01))
    text = said(rows)
    assert "1 degrees of freedom" in text
    assert "not trained with the same seeds" in text.replace("Not every size and budget was", "not")
    assert "`dense` 1 or 2; `moe` 1" in text


def test_edge_and_missing_parabola() -> None:
    text = said(study(dims=(16, 24)))
    assert "edge of the grid for `dense` at 3e11 FLOPs" in text
    assert "No parabola" in text


def test_extrapolation_unknown_and_overlap() -> None:
    assert "extrapolated beyond the baseline's runs for `moe` at 1e12 FLOPs, equal FLOPs" in said(
        study(gain=5.0, dense_budgets=(3e11, 1e12), sparse_budgets=(1e12,))
    )
    assert "unknown, because the baseline has one budget or its better one took no longer" in said(
        study(dense_budgets=(1e12,), sparse_budgets=(1e12,))
    )
    assert "The interval holds 1" in said(study(gain=1.0, slowdown=1.0, seeds=2, noise=0.02))


def test_run_limits() -> None:
    rows = study(seeds=2, noise=0.01)
    rows[0] = replace(rows[0], epochs=2.5, flops_spent=1.02 * rows[0].flops_planned, dropped_share=0.25)
    diverged = run_result("dense", 1e12, 512, 0, math.nan)
    finite = compute_multiplier(rows, "moe", resamples=100)
    text = "\n".join(limits([*rows, diverged], finite, [*(row.run for row in rows), "moe-lost"]))
    assert "1 of 85 runs saw their text more than once (up to 2.50 epochs)" in text.replace(
        f"of {len(rows) + 1}", "of 85"
    )
    assert f"Spent more than 1% more or less FLOPs than planned: `{rows[0].run}`" in text
    assert "share of 0.250" in text
    assert f"Diverged, and left out of every mean, which flatters their cells: `{diverged.run}`" in text
    assert f"1 of {len(rows) + 1} planned runs did not finish: `moe-lost`" in text
