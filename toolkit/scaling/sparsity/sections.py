"""Sections of the study's report that go beyond the grid's own table: laws, costs, projection, prediction, search."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.scaling.claims import number, times, verdict
from toolkit.scaling.document import markdown_table
from toolkit.scaling.laws.approaches import Allocation
from toolkit.scaling.laws.exponents import ConventionExponents, Interval, exponents_by_convention
from toolkit.scaling.laws.isoflop import finite_runs
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
        "cells held out in five folds, all seeds of a cell together. *Largest budget*: predicted from the others.",
        markdown_table(laws.selection.columns, laws.selection.cells),
        f"The best of them, {laws.best.form.title} ({laws.best.form.source}), came to {_constants(laws)}.",
        f"By it, `{baseline}` at its best width needs these multiples of the compute for the family's best loss. In "
        f"brackets 95% intervals over {len(laws.draws.vectors)} resamples of the cells within families, each cell with "
        "all its seeds.",
        markdown_table(
            "family | budget (FLOPs) | best width | bits per byte | **multiplier at equal FLOPs** | ",
            [_law_cells(entry) for entry in laws.multipliers],
        ),
    ]


def _constants(laws: Laws) -> str:
    return ", ".join(f"{name} = {value:.4g}" for name, value in laws.best.theta.items()).replace("e+", "e")


def _law_cells(entry: LawMultiplier) -> tuple[str, ...]:
    flags = ", extrapolated" if entry.estimate.extrapolated else ""
    if not flags and entry.estimate.interval_extrapolated:
        flags = ", interval extrapolated"
    cells = f"`{entry.family}`", number(entry.budget), str(entry.dim), f"{entry.loss:.3f}", times(entry.estimate)
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
        "The best measured cell of each family at the largest budget of all. *Same loss*: the FLOPs and the seconds "
        f"that the family needs for the loss `{baseline}` reached there, over what `{baseline}` spent (below 1, "
        "sparsity paid), between measured runs. *Same memory*: the family's lowest loss at that budget among models "
        f"that hold no more parameters than `{baseline}`'s best does.",
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
            "" if entry.multiplier is None else times(entry.multiplier),
            "" if entry.effective is None else times(entry.effective),
        )
        for entry in projections
    ]
    return [
        f"## Projected onto one {device}",
        f"**Projected, not measured**: the least time that a training step of these families could take on one "
        f"{device}, by the data sheet's peak and bandwidth (`toolkit.compute.roofline`), at a width, context and batch "
        "of that size. Real steps are slower, sparse ones by more. *Effective speedup*: the multiplier found here at "
        f"the largest budget, divided by how much longer the family's FLOPs take than `{baseline}`'s; that it holds at "
        "that size is an assumption.",
        markdown_table(
            "family | width x layers | least ms of a step | time of a FLOP / dense | multiplier here | **effective "
            "speedup, projected**",
            body,
        ),
    ]


def prediction_section(tests: Sequence[Tested], predicted: bool) -> list[str]:
    """The next budget's best models with their predicted losses, and what they reached."""
    if not tests:
        return ["## The prediction", "Predicted, and not tested yet."] if predicted else []
    body = [
        (
            f"`{test.prediction.family}`",
            number(test.prediction.budget),
            str(test.prediction.dim) + (" (edge)" if test.prediction.at_edge else ""),
            f"{test.prediction.active:,.0f}",
            f"{test.prediction.total:,.0f}",
            number(test.prediction.tokens),
            f"{test.prediction.loss:.3f} ({test.prediction.low:.3f} to {test.prediction.high:.3f})",
            ", ".join(f"{loss:.3f}" for loss in test.measured.values()),
            f"{100 * test.error:+.1f}%",
            "yes" if test.held else "**no**",
        )
        for test in tests
    ]
    held = sum(test.held for test in tests)
    return [
        "## The prediction, and its test",
        "Before any of these runs began, the law above chose each family's width for a budget larger than any it was "
        "fitted to and wrote down the loss (`prediction.json`), with the 95% interval for one run. Then they were "
        f"trained. {held} of {len(tests)} families' runs all lie within it.",
        markdown_table(
            "family | FLOPs | width | active parameters | all parameters | tokens | predicted bits per byte | measured "
            "| mean over predicted | within",
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
            *(f"{loss:.3f}" for loss in rate.losses),
            f"{rate.rate:.3g}" + (" (at the edge)" if rate.at_edge else ""),
        )
        for rate in rates.values()
    ]
    flops = sum(row.flops_spent for row in searched)
    return [
        "## Learning rates",
        f"Bits per byte at width {base_dim} by peak learning rate, {len(searched)} runs, {number(flops)} FLOPs in all, "
        "which are in nobody's budget above.",
        markdown_table(" | ".join(["family", *(f"{rate:.3g}" for rate in tried), "taken"]), body),
    ]


def exponents_section(rows: Sequence[RunResult], family: str) -> list[str]:
    """How the baseline's exponents move with what counts as a parameter."""
    finite = finite_runs(rows)[0]
    try:
        found = exponents_by_convention(finite, family)
    except ValueError as reason:
        return ["## Exponents", f"Not fitted: {reason}."]
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
        "uses, a tied matrix once; `total`: everything.",
    ]


def _exponent_cells(found: ConventionExponents) -> tuple[str, ...]:
    second = found.reason if found.allocation is None else _exponent(found.allocation)
    cells = (_interval(each) for each in (found.alpha, found.beta, found.exponent))
    return (f"`{found.convention}`", f"{found.fitted.theta['E']:.3f}", *cells, second)


def _interval(found: Interval) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _exponent(allocation: Allocation) -> str:
    return f"{allocation.params.exponent:.3f}"
