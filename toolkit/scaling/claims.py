"""What the runs support, in words: the answer to the study's question and what it cannot claim."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from toolkit.scaling.laws.isoflop import IsoFLOPMinimum, finite_runs, isoflop_minima, seed_noise
from toolkit.scaling.multiplier import ComputeMultiplier, Estimate
from toolkit.scaling.origin import mixed_code
from toolkit.scaling.results import RunResult

Verdict = Literal["won", "lost", "undecided", "no interval", "unknown"]

_FEW_DEGREES_OF_FREEDOM = 10  # below it the 95% quantile of Student's t is 14% or more above the normal one
_FLOPS_TOLERANCE = 0.01


def number(value: float) -> str:
    """Write a number short: 3e11, 0.84, 120."""
    return re.sub(r"e\+?(-?)0*(?=\d)", r"e\1", f"{value:.3g}")


def times(estimate: Estimate) -> str:
    """Write a multiplier with its interval: ``1.5 (1.3 to 1.7)``."""
    if math.isnan(estimate.value):
        return "unknown"
    value = "unbounded" if math.isinf(estimate.value) else f"{estimate.value:.2f}"
    if estimate.low is None or estimate.high is None:
        return value
    high = "unbounded" if math.isinf(estimate.high) else f"{estimate.high:.2f}"
    return f"{value} ({estimate.low:.2f} to {high})"


def verdict(estimate: Estimate) -> Verdict:
    """Judge a multiplier: won above 1, lost below 1, undecided where the 95% interval holds 1."""
    if math.isnan(estimate.value):
        return "unknown"
    if estimate.low is None or estimate.high is None:
        return "no interval"
    if estimate.low > 1:
        return "won"
    return "lost" if estimate.high < 1 else "undecided"


def answer(multipliers: Sequence[ComputeMultiplier]) -> list[str]:
    """Answer the question, one paragraph for each family, at its largest budget.

    Args:
        multipliers: of any families and budgets.
    """
    largest = {entry.family: entry for entry in sorted(multipliers, key=lambda entry: entry.budget)}
    return [_answer(largest[family]) for family in dict.fromkeys(entry.family for entry in multipliers)]


def _answer(entry: ComputeMultiplier) -> str:
    flops, seconds = verdict(entry.equal_flops), verdict(entry.equal_seconds)
    text = (
        f"At {number(entry.budget)} FLOPs `{entry.family}` reached {entry.loss:.3f} bits per byte; "
        f"{_needs(entry.baseline, entry.equal_flops, 'compute')}. "
        f"In {number(entry.seconds)} s on this machine it reached {entry.loss_at_seconds:.3f}; "
        f"{_needs(entry.baseline, entry.equal_seconds, 'time')}. "
        f"**In FLOPs: {_phrase(flops, entry.equal_flops)}. "
        f"On this machine's clock: {_phrase(seconds, entry.equal_seconds)}.**"
    )
    if flops == "won" and seconds == "lost":
        text += " A sparse model that wins the first and loses the second has not won."
    return text


def _needs(baseline: str, estimate: Estimate, cost: str) -> str:
    if math.isnan(estimate.value):
        return f"how much {cost} `{baseline}` needs for that is unknown"
    if math.isinf(estimate.value):
        return (
            f"by its own trend, continued, no amount of {cost} brings `{baseline}` there: the multiplier is unbounded"
        )
    flag = " (an extrapolation)" if estimate.extrapolated else ""
    return f"`{baseline}` needs {times(estimate)} times the {cost} for that{flag}"


def _phrase(judged: Verdict, estimate: Estimate) -> str:
    side = "above" if estimate.value > 1 else "not above"
    return {
        "won": "sparsity paid",
        "lost": "sparsity did not pay",
        "undecided": "undecided, the 95% interval holds 1",
        "no interval": f"the estimate is {side} 1, but one seed per cell supports no claim",
        "unknown": "nothing can be said, the baseline has one budget, or its better one took no longer",
    }[judged]


def limits(
    rows: Sequence[RunResult],
    multipliers: Sequence[ComputeMultiplier],
    planned_runs: Sequence[str] = (),
) -> list[str]:
    """List what the data cannot support, each a sentence or two.

    Args:
        rows: every run that ended, diverged ones included.
        multipliers: the claims made of them.
        planned_runs: names of all runs that the study planned.
    """
    finite, diverged = finite_runs(rows)
    minima = isoflop_minima(finite)
    found = [
        *_seed_limits(finite),
        *_minimum_limits(minima),
        *_multiplier_limits(multipliers),
        *run_limits(rows, diverged, planned_runs),
    ]
    budgets = [minimum.budget for minimum in minima]
    always = [
        "Seconds are steps x the isolated time of one step on this machine, not the time in the sweep (*The study* "
        "tells how it was measured); intervals of multipliers hold the noise over seeds, not that of the clock.",
        "All runs are evaluated on the same validation windows: the sampling error of these windows is shared, so "
        "most of it cancels between runs, not all, and no interval holds the rest.",
        "Costs between measured budgets are interpolated, which itself errs by a few per cent; "
        "the intervals do not hold that.",
        f"The grid's runs span {number(min(budgets))} to {number(max(budgets))} FLOPs; beyond, nothing of it is "
        "measured.",
        *_repetition(rows),
    ]
    return found + always


def _repetition(rows: Sequence[RunResult]) -> list[str]:
    """What can be said of repeated text where none was."""
    most = max(row.epochs for row in rows)
    return (
        [] if most > 1 else [f"No run saw its text twice (at most {most:.2f} epochs): nothing is said of repetition."]
    )


def _seed_limits(rows: Sequence[RunResult]) -> list[str]:
    noise = seed_noise(rows)
    found = []
    if noise is None:
        found.append(
            "One seed: no size and budget was trained twice, so the noise over seeds is unmeasured, there "
            "are no intervals over seeds, and any difference between families may be chance."
        )
    elif noise.degrees_of_freedom < _FEW_DEGREES_OF_FREEDOM:
        found.append(
            f"The noise over seeds ({noise.sd:.3f} bits per byte) rests on {noise.degrees_of_freedom} "
            "degrees of freedom; the intervals are widened for that."
        )
    seeds: dict[tuple[str, float, int], set[int]] = {}
    for row in rows:
        seeds.setdefault((row.family, row.budget, row.dim), set()).add(row.seed)
    if len({frozenset(each) for each in seeds.values()}) > 1:
        per_family = {
            family: sorted({len(each) for key, each in seeds.items() if key[0] == family})
            for family in dict.fromkeys(row.family for row in rows)
        }
        counts = "; ".join(f"`{family}` {join_words(map(str, each), 'or')}" for family, each in per_family.items())
        found.append(f"Not every size and budget was trained with the same seeds (seeds per cell: {counts}).")
    return found


def _minimum_limits(minima: Sequence[IsoFLOPMinimum]) -> list[str]:
    edge = [_place(minimum) for minimum in minima if minimum.at_edge]
    unfitted = [_place(minimum) for minimum in minima if minimum.method == "best cell"]
    found = []
    if edge:
        found.append(
            f"The best measured size is at the edge of the grid for {join_words(edge)}: a size beyond it may do better."
        )
    if unfitted:
        found.append(
            f"No parabola with a minimum within the grid could be fitted for {join_words(unfitted)}: the best "
            "measured size stands in for the optimum."
        )
    return found


def _multiplier_limits(multipliers: Sequence[ComputeMultiplier]) -> list[str]:
    claims = [
        (f"`{entry.family}` at {number(entry.budget)} FLOPs, equal {kind}", estimate)
        for entry in multipliers
        for kind, estimate in (("FLOPs", entry.equal_flops), ("seconds", entry.equal_seconds))
    ]
    groups = [
        (
            "The multiplier is unknown, because the baseline has one budget or its better one took no longer, for {}.",
            [name for name, estimate in claims if verdict(estimate) == "unknown"],
        ),
        (
            "The multiplier is extrapolated beyond the baseline's runs for {}.",
            [name for name, estimate in claims if estimate.extrapolated],
        ),
        (
            "The multiplier lies within the baseline's runs but its interval reaches beyond them for {}.",
            [name for name, each in claims if each.interval_extrapolated and not each.extrapolated],
        ),
        (
            "The interval holds 1, so neither side can be said to have won, for {}.",
            [name for name, estimate in claims if verdict(estimate) == "undecided"],
        ),
    ]
    found = [sentence.format(join_words(names)) for sentence, names in groups if names]
    intervals = sum(estimate.low is not None for _, estimate in claims)
    if intervals > 1:
        found.append(
            f"Each of the {intervals} intervals is a 95% one by itself; that all of them hold the truth is less likely."
        )
    return found


def run_limits(rows: Sequence[RunResult], diverged: Sequence[RunResult], planned_runs: Sequence[str]) -> list[str]:
    """What did not finish, diverged, ran short of text, missed its budget or dropped tokens."""
    ended = {row.run for row in rows}
    repeated = [row for row in rows if row.epochs > 1]
    ended_well = finite_runs(rows)[0]
    off = [f"`{row.run}`" for row in ended_well if abs(row.flops_spent / row.flops_planned - 1) > _FLOPS_TOLERANCE]
    dropped = [row for row in rows if row.dropped_share > 0]
    missing = [f"`{run}`" for run in planned_runs if run not in ended]
    found = []
    if missing:
        found.append(f"{len(missing)} of {len(planned_runs)} planned runs did not finish: {join_words(missing)}.")
    if diverged:
        names = join_words(f"`{row.run}`" for row in diverged)
        found.append(f"Diverged, and left out of every mean, which flatters their cells: {names}.")
    if repeated:
        found.append(
            f"{len(repeated)} of {len(rows)} runs saw their text more than once (up to "
            f"{max(row.epochs for row in repeated):.2f} epochs): they are limited by data as well "
            "as by compute."
        )
    if mixed_code(rows):
        found.append(mixed_code(rows))
    if off:
        found.append(f"Spent more than 1% more or less FLOPs than planned: {join_words(off)}.")
    if dropped:
        share = max(row.dropped_share for row in dropped)
        found.append(f"{len(dropped)} runs dropped token assignments, up to a share of {share:.3f}.")
    return found


def _place(minimum: IsoFLOPMinimum) -> str:
    return f"`{minimum.family}` at {number(minimum.budget)} FLOPs"


def join_words(names: Iterable[str], word: str = "and") -> str:
    """Write names as a list in a sentence: ``a, b and c``."""
    *head, last = names
    return f"{', '.join(head)} {word} {last}" if head else last
