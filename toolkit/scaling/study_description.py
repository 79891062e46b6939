"""What a report says of how its study was made."""

from __future__ import annotations

import json
import shlex
import sys

from toolkit.scaling import machine
from toolkit.scaling.document import StudyDescription
from toolkit.scaling.study import Study
from toolkit.training.precision import resolve_precision
from toolkit.training.provenance import code_version

ALONE = 1.5
"""A load average up to this is this process alone."""


def describe_study(study: Study, title: str, question: str) -> StudyDescription:
    """What the report says of how the study was made."""
    return StudyDescription(
        title=title,
        question=question,
        config=study.settings,
        corpus=(*study.prepared.report.summary().splitlines(), f"hash {study.prepared.digest[:16]}"),
        machine=f"{machine.describe()}; {study.resolved_workers} runs at once, {study.threads} threads each"
        + _elsewhere(study),
        precision=resolve_precision(study.training.precision, study.parallel.device),
        conventions=(
            "FLOPs are training FLOPs in the `exact` convention: matrix products only, over visible (query, key) "
            "pairs, router and chosen experts included, backward twice the forward.",
            f"Bits per byte on {study.validation_windows} validation windows of {study.training.context} tokens, "
            "the same for every run.",
            _learning_rates(study),
        ),
        seconds_source="steps x the median time of one step of that model alone on the machine, all models timed "
        f"in turn in one process; validation, logging and Lightning's own overhead are not in it.{_company(study)}",
        code_version=code_version(),
        command=shlex.join(["python", *sys.argv]),
        planned_runs=tuple(run.name for run in study.runs),
    )


def _learning_rates(study: Study) -> str:
    recipe = study.grid.recipe.describe()
    if study.rates is None:
        return f"{recipe} The same for every family; it was not tuned for each."
    found = ", ".join(f"`{family}` {rate:.3g}" for family, rate in study.rates.items())
    return f"{recipe} Each family's own at that width was searched for first: {found}."


def _elsewhere(study: Study) -> str:
    """What the report adds of the machine where runs are trained on others."""
    return ", on a cluster; this machine timed the steps" if study.launcher == "slurm" else ""


def _company(study: Study) -> str:
    """A sentence for the report if the machine was not alone while steps were timed; else nothing."""
    if not study.folder.step_load.exists():
        return ""
    load = json.loads(study.folder.step_load.read_text())
    if load <= ALONE:
        return ""
    return (
        f" The machine was shared meanwhile (load average {load:g} on {machine.cores()} cores when timing began): "
        "times are too long, and between models, though they took turns, differences of a fifth mean little."
    )
