"""Sections of the study's report that go beyond the grid's own table: laws, costs, projection, prediction, search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from toolkit.scaling.claims import join_words, number, times, verdict
from toolkit.scaling.document import markdown_table
from toolkit.scaling.laws.approaches import Allocation
from toolkit.scaling.laws.exponents import ConventionExponents, Interval
from toolkit.scaling.multiplier import Estimate
from toolkit.scaling.results import RunResult
from toolkit.scaling.sparsity.costs import FamilyCost, Projection
from toolkit.scaling.sparsity.frontier import LawMultiplier
from toolkit.scaling.sparsity.prediction import Tested
from toolkit.scaling.sparsity.search import FoundRate
from toolkit.scaling.sparsity.study import Laws


def law_section(laws: Laws | None, no_laws: str, baseline: str) -> list[str]:
    """The forms held against one another, and what the best of them says of every family's compute."""
    if laws is None:
        return ["## By a law of all runs", f"No law was fitted: {no_laws}."]
    return [
        "## By a law of all runs",
        "Forms of the loss over active parameters N (those multiplied with for one token, the head's matrix included) "
        "and tokens D, fitted to log losses of every run of the grid. *Cross-validated*: root mean square error of "
        "cells held out in five folds, all that share a cell's seeds or a trunk together; *tied*: within one standard "
        "error of the best, fold by fold. *Largest budgets*: predicted from the others.",
        markdown_table(laws.selection.columns, laws.selection.cells),
        f"The best of those that tell all families apart, {laws.best.form.title} ({laws.best.form.source}), came to "
        f"{_constants(laws)}.",
        *(f"Caution: {line}" for line in laws.best.cautions),
        f"By it, `{baseline}` at its best width needs these multiples of the compute for the family's best loss. In "
        f"brackets 95% intervals over {len(laws.draws.vectors)} resamples of the cells within families, each cell with "
        "all its seeds. *Extrapolated*: the budget was not trained for the family, or that compute is outside the "
        f"budgets of `{baseline}`; *edge*: the width is the least or the largest that a law may choose.",
        markdown_table(
            "family | budget (FLOPs) | best width | bits per byte | **multiplier at equal FLOPs** | verdict",
            [_law_cells(entry) for entry in laws.multipliers],
        ),
    ]


def _constants(laws: Laws) -> str:
    return ", ".join(f"{name} = {_short(value)}" for name, value in laws.best.theta.items())


def _short(value: float) -> str:
    """Four digits, 1.5e11 rather than 1.5e+11."""
    return f"{value:.4g}".replace("e+", "e")


def _law_cells(entry: LawMultiplier) -> tuple[str, ...]:
    flags = ", extrapolated" if entry.estimate.extrapolated else ""
    if not flags and entry.estimate.interval_extrapolated:
        flags = ", interval extrapolated"
    width = f"{entry.dim}{' (edge)' if entry.at_edge else ''}"
    cells = f"`{entry.family}`", number(entry.budget), width, f"{entry.loss:.3f}", times(entry.estimate)
    return (*cells, verdict(entry.estimate) + flags)


def cost_section(costs: Sequence[FamilyCost], baseline: str) -> list[str]:
    """What each family's best at the largest budget holds and takes, and what it would be worth at equal size."""
    if not costs:
        return []
    body = [
        (
            f"`{entry.family}`",
            str(entry.best.dim),
            f"{entry.best.loss:.3f}",
            f"{entry.active:,}",
            f"{entry.total:,}",
            f"{entry.training_bytes / 1e6:.1f}",
            number(entry.seconds),
            _or_none(entry.same_loss_flops, "{:.2f}"),
            _or_none(entry.same_loss_seconds, "{:.2f}"),
            _or_none(entry.same_memory_loss, "{:.3f}"),
        )
        for entry in costs
    ]
    return [
        "## What it costs besides",
        f"The best measured cell of each family at {number(costs[0].best.budget)} FLOPs, the largest budget that all "
        f"were trained on. *Same loss*: the FLOPs that the family needs for the minimum of `{baseline}`'s isoFLOP "
        f"curve there, by the minima of its own, and the seconds for the loss of `{baseline}`'s best cell, each over "
        f"what `{baseline}` spent (below 1, sparsity paid); none where measured runs do not enclose it. *Same memory*: "
        f"the family's lowest loss at that budget among models that hold no more parameters than `{baseline}`'s best "
        "does.",
        markdown_table(
            "family | width | bits per byte | active parameters | **all parameters** | training MB | seconds "
            "| same loss: FLOPs | same loss: seconds | same memory: bits per byte",
            body,
        ),
    ]


def _or_none(value: float | None, form: str) -> str:
    return "none" if value is None else form.format(value)


def projection_section(projections: Sequence[Projection], device: str | None, baseline: str) -> list[str]:
    """The multipliers charged for a named device's roofline."""
    if not projections:
        return []
    body = [
        (
            f"`{entry.family}`",
            f"{entry.dim} x {entry.layers}",
            f"{1e3 * entry.seconds:.1f}",
            f"{entry.seconds_per_flop:.2f}",
            _flagged(entry.multiplier),
            _flagged(entry.effective),
        )
        for entry in projections
    ]
    return [
        f"## Projected onto one {device}",
        "**Projected, not measured**: about the time that a training step of these families would take at the peaks of "
        f"one {device}, by the data sheet, its parts one after another (`toolkit.compute.roofline`), at a width, "
        "context and batch of that size. Launches and small products are not in it; sparse models lose more by these. "
        "*Effective speedup*: the multiplier measured here at the family's largest budget, divided by how much longer "
        f"the family's FLOPs take than `{baseline}`'s; that it holds at that size is an assumption.",
        markdown_table(
            f"family | width x layers | ms of a step | time of a FLOP / `{baseline}`'s | multiplier here "
            "| **effective speedup, projected**",
            body,
        ),
    ]


def _flagged(estimate: Estimate | None) -> str:
    """A multiplier with its interval, and where it lies beyond what was measured."""
    if estimate is None:
        return ""
    beyond = estimate.extrapolated or estimate.interval_extrapolated
    flags = [*(["no interval"] if estimate.low is None else []), *(["extrapolated"] if beyond else [])]
    return times(estimate) + (f", {', '.join(flags)}" if flags else "")


def prediction_section(tests: Sequence[Tested], asked: bool, built: Mapping[str, str] | None = None) -> list[str]:
    """The next budget's best models with their predicted losses, and what they reached; nothing unless ``asked``.

    ``built`` says of a family what its layers are.
    """
    if not tests:
        return ["## The prediction", "None was made: there is no law to make it."] if asked else []
    body = [
        (
            f"`{test.prediction.family}`",
            number(test.prediction.budget),
            str(test.prediction.dim) + (" (edge)" if test.prediction.at_edge else ""),
            f"{test.prediction.active:,.0f}",
            f"{test.prediction.total:,.0f}",
            number(test.prediction.tokens),
            f"{test.prediction.loss:.3f} ({test.prediction.low:.3f} to {test.prediction.high:.3f})",
            ", ".join([*(f"{loss:.3f}" for loss in test.measured.values()), *(["diverged"] * len(test.diverged))]),
            f"{100 * test.error:+.1f}%" if test.measured else "",
            "yes" if test.held else "**no**",
            (built or {}).get(test.prediction.family, ""),
        )
        for test in tests
    ]
    held, laws = sum(test.held for test in tests), dict.fromkeys(test.prediction.law for test in tests)
    return [
        "## The prediction, and its test",
        f"Before any of these runs began, a law ({join_words(laws)}) chose each family's width for a budget larger "
        "than any it was fitted to and wrote down the loss (`prediction.json`), with the 95% interval for one run by "
        f"itself. Then they were trained. For {held} of {len(tests)} families all runs lie within it.",
        markdown_table(
            "family | FLOPs | width | active parameters | all parameters | tokens | predicted bits per byte "
            "| measured | mean over predicted | within | layers",
            body,
        ),
    ]


def search_section(rates: dict[str, FoundRate], searched: Sequence[RunResult], base_dim: int) -> list[str]:
    """The learning rates that were tried and found."""
    if not rates:
        return []
    tried = next(iter(rates.values())).tried
    body = [
        (
            f"`{rate.family}`",
            *(f"{loss:.3f}" if math.isfinite(loss) else "diverged" for loss in rate.losses),
            f"{rate.rate:.3g}" + (" (at the edge)" if rate.at_edge else ""),
        )
        for rate in rates.values()
    ]
    flops = sum(row.flops_spent for row in searched)
    return [
        "## Learning rates",
        f"Bits per byte at width {base_dim} by peak learning rate, mean over the seeds that did not diverge; "
        f"{len(searched)} runs, {number(flops)} FLOPs in all, which are in nobody's budget above. *Taken*: the vertex "
        "of the parabola in log rate through the lowest and its neighbours, or the lowest where there is none.",
        markdown_table(" | ".join(["family", *(f"{rate:.3g}" for rate in tried), "taken"]), body),
    ]


def exponents_section(found: Sequence[ConventionExponents], not_fitted: str, family: str) -> list[str]:
    """How the baseline's exponents move with what counts as a parameter, or why they were not fitted."""
    if not found:
        return ["## Exponents", f"Not fitted: {not_fitted}."]
    return [
        "## Exponents, by what counts as a parameter",
        f"Of `{family}`: L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, approach 3; squares of log losses), "
        "with 95% intervals over resampled runs; a is the exponent of the best N in N D. *Approach 2*: the exponent of "
        "the best N in exact FLOPs from parabolas, which is biased where alpha and beta differ "
        "(`toolkit.scaling.laws.parabola_bias`).",
        markdown_table(
            "N counts | E | alpha | beta | a (approach 3) | a (approach 2)", [_exponent_cells(each) for each in found]
        ),
        "`active`: inside the layers; `active_with_head`: and the output product; `active_total`: all that one token "
        "uses, a tied matrix once; `total`: everything. The last three count a dense model with a tied head alike.",
        *(f"Caution, `{each.convention}`: {line}" for each in found for line in each.fitted.cautions),
    ]


def exponents_limit(found: Sequence[ConventionExponents]) -> str:
    """A sentence on how far the convention moves the exponent of the best size, beside how sure it is."""
    ascending = sorted(found, key=lambda each: each.exponent.value)
    lowest, highest = ascending[0], ascending[-1]
    low, high = min(each.exponent.low for each in found), max(each.exponent.high for each in found)
    return (
        f"What counts as a parameter moves the exponent of the best N from {lowest.exponent.value:.3f} "
        f"(`{lowest.convention}`) to {highest.exponent.value:.3f} (`{highest.convention}`), and their intervals span "
        f"{low:.3f} to {high:.3f}: to be compared with a published exponent only under its convention."
    )


def _exponent_cells(found: ConventionExponents) -> tuple[str, ...]:
    second = found.reason if found.allocation is None else _exponent(found.allocation)
    cells = (_interval(each) for each in (found.alpha, found.beta, found.exponent))
    return (f"`{found.convention}`", f"{found.fitted.theta['E']:.3f}", *cells, second)


def _interval(found: Interval) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _exponent(allocation: Allocation) -> str:
    return f"{allocation.params.exponent:.3f}"
