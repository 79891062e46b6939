"""The study's report: Markdown, the same as one HTML file with interactive figures, and TensorBoard's view of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.checks import require
from toolkit.scaling.claims import join_words, number, run_limits
from toolkit.scaling.laws.exponents import ConventionExponents, exponents_by_convention
from toolkit.scaling.laws.isoflop import finite_runs
from toolkit.scaling.multiplier import ComputeMultiplier
from toolkit.scaling.origin import mixed_code
from toolkit.scaling.plan import Family, ModelShape
from toolkit.scaling.report import study_multipliers, write_report
from toolkit.scaling.results import RunResult
from toolkit.scaling.sparsity import sections
from toolkit.scaling.sparsity.cli import Findings
from toolkit.scaling.sparsity.costs import Projection, family_costs, project
from toolkit.scaling.study_description import describe_study

TITLE = "Dense against sparse at equal compute"
QUESTION = (
    "At the same training FLOPs, and in the same time on this machine, does a sparse decoder predict text better?"
)


def write_sparsity_report(found: Findings) -> Path:
    """Write report.md, report.html, figures and TensorBoard's view into the study's folder; the Markdown's path.

    Raises:
        ValueError: if no run of the grid ended with a finite loss.
    """
    from toolkit.scaling.page.page import write_page
    from toolkit.scaling.sparsity.figures import sparsity_figures
    from toolkit.scaling.sweep_board import write_sweep_board

    study, folder = found.study, found.study.base.folder.path
    finite, baseline = finite_runs(found.rows)[0], study.laws.baseline
    require(bool(finite), "rows", f"{len(found.rows)} runs", "at least one that ended with a finite loss")
    multipliers = study_multipliers(finite, baseline)
    description = describe_study(study.base, TITLE, QUESTION)
    figures = sparsity_figures(found, multipliers, description.command)
    exponents, not_fitted = _exponents(finite, baseline, study.base.grid.branch)
    path = write_report(
        folder,
        found.rows,
        description,
        caveats=[*_caveats(found), *([sections.exponents_limit(exponents)] if exponents else [])],
        figures=figures,
        sections=[
            *_sections(found, finite, multipliers),
            *sections.exponents_section(exponents, not_fitted, baseline),
            *sections.search_section(found.rates, found.searched, study.base.grid.recipe.base_dim),
        ],
        others={"The runs of the prediction": found.next_rows, "The runs of the search": found.searched},
    )
    write_page(path, figures, path.with_suffix(".html"), TITLE)
    write_sweep_board(folder, found.rows, figures, [*found.searched, *found.next_rows])
    return path


def _sections(found: Findings, finite: Sequence[RunResult], multipliers: Sequence[ComputeMultiplier]) -> list[str]:
    study, baseline = found.study, found.study.laws.baseline
    return [
        *sections.law_section(found.laws, found.no_laws, baseline),
        *sections.prediction_section(found.tests, study.next_budget is not None, _built(study.shape)),
        *sections.cost_section(family_costs(finite, baseline), baseline),
        *sections.projection_section(_projections(found, multipliers), study.laws.device, baseline),
    ]


def _exponents(rows: Sequence[RunResult], family: str, branched: bool) -> tuple[tuple[ConventionExponents, ...], str]:
    """The family's exponents by convention, or why there are none."""
    try:
        return exponents_by_convention(rows, family, branched=branched), ""
    except ValueError as reason:
        return (), str(reason)


def _built(shape: ModelShape) -> dict[str, str]:
    """What the layers of each family are, in a few words."""
    return {family.name: _layers(family) for family in shape.arms}


def _layers(family: Family) -> str:
    patterns = ", ".join(f"`{pattern}`" for pattern in dict.fromkeys(family.patterns))
    if family.num_experts == 0:
        return f"dense; {patterns}"
    shared = f" and {family.shared_experts} shared" if family.shared_experts else ""
    return f"{family.num_experts} experts, {family.top_k} a token{shared}; {patterns}"


def _projections(found: Findings, multipliers: Sequence[ComputeMultiplier]) -> list[Projection]:
    settings, study = found.study.laws, found.study
    if settings.device is None:
        return []
    sizes = settings.device_dim, settings.device_context, settings.device_batch
    shape, families = study.device_shape, study.families
    return project(shape, families, settings.baseline, multipliers, settings.device, *sizes, study.vocab_size)


def _caveats(found: Findings) -> list[str]:
    """What the laws, the prediction and the search cannot say, from what they found."""
    lines = []
    edges = [f"`{rate.family}`" for rate in found.rates.values() if rate.at_edge]
    if edges:
        lines.append(
            f"The best learning rate tried is the least or the largest for {join_words(edges)}: theirs may not be best."
        )
    if found.rates:
        recipe = found.study.base.grid.recipe
        lines.append(
            f"Learning rates were searched at width {recipe.base_dim} alone and carried to the others by "
            f"`{recipe.transfer}`; batch, warmup and weight decay were not searched."
        )
    if found.laws is not None:
        budgets = sorted({row.budget for row in found.rows})
        lines.append(
            f"The law rests on budgets from {number(budgets[0])} to {number(budgets[-1])}, a factor of "
            f"{budgets[-1] / budgets[0]:.3g}; its irreducible loss and exponents are determined together and loosely, "
            "and its form was chosen on the same runs."
        )
    missed = [f"`{test.prediction.family}`" for test in found.tests if not test.held]
    if missed:
        lines.append(
            f"The law's prediction failed for {join_words(missed)}: its intervals are too narrow there, its form is "
            "wrong, a run diverged, or it is the one run in twenty that a 95% interval misses."
        )
    at_edge = [f"`{test.prediction.family}`" for test in found.tests if test.prediction.at_edge]
    if at_edge:
        lines.append(
            f"The law's best width is at the edge of those allowed for {join_words(at_edge)}: one beyond it may do "
            "better."
        )
    if any(row.active_expert_parameters for row in found.rows):
        lines.append("What experts specialise in is shown of one run, one seed, on the validation windows.")
    return [*lines, *_other_limits(found)]


def _other_limits(found: Findings) -> list[str]:
    """What the runs beside the grid's add to its limits."""
    following = found.next_rows
    lines = [f"Of the prediction's runs: {line}" for line in run_limits(following, finite_runs(following)[1], ())]
    both = mixed_code([*found.rows, *found.searched, *following])
    return [*lines, both] if both and not mixed_code(found.rows) else lines
