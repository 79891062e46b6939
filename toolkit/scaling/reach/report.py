"""The report of a study of reach: accuracy against distance beside the cut of each pattern's own masks."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from toolkit.attention.patterns import Pattern
from toolkit.attention.selection import parse_sparsity
from toolkit.checks import require
from toolkit.files import write_atomically
from toolkit.scaling import machine
from toolkit.scaling.claims import number
from toolkit.scaling.document import StudyDescription, bullets, figure_section, markdown_table, study_section
from toolkit.scaling.reach.arms import Reach, ReachArm, arm_reach
from toolkit.scaling.reach.figures import plot_reach
from toolkit.scaling.reach.study import ReachStudy
from toolkit.scaling.reach.table import ReachRow
from toolkit.training.provenance import code_version

TITLE = "What each attention pattern can reach"
QUESTION = (
    "A pair A B stands in filler and A comes again: from how far does a small causal model still know B, and is that "
    "as far as its masks, one layer after another, lead?"
)
LEVEL = 0.99
"""Of the intervals that chance is held against, all beyond-reach figures of the table together."""


def write_reach_report(study: ReachStudy, rows: Sequence[ReachRow]) -> Path:
    """Draw the figure and write report.md and report.html into the study's folder; the Markdown's path.

    Raises:
        ValueError: if there are no rows.
    """
    from toolkit.scaling.page.page import write_page
    from toolkit.scaling.page.predictions import reach

    require(bool(rows), "rows", len(rows), "at least one run's")
    folder, chance = study.folder.path, study.task.training.chance
    reached = {arm.name: arm_reach(study.model, arm, study.task.length) for arm in study.arms}
    figure = plot_reach(rows, reached, chance, study.task.nearest, folder / "reach.png")
    description, runs = _description(study), dict.fromkeys(f"{row.pattern}-seed{row.seed}" for row in rows)
    figure = figure.backed(command=description.command, runs=runs, interactive=reach(rows, chance))
    sections = [
        f"# {TITLE}",
        f"**Question.** {QUESTION}",
        "## Accuracy against distance",
        _legend(study, chance),
        accuracy_table(rows, reached),
        bullets(findings(rows, reached, chance)),
        *figure_section([figure], folder),
        "## The patterns",
        _arms_table(study, rows),
        "## What this cannot tell",
        bullets(_limits(study, rows)),
        *study_section(description),
    ]
    path = folder / "report.md"
    write_atomically(path, "\n\n".join(sections) + "\n")
    write_page(path, [figure], path.with_suffix(".html"), TITLE)
    return path


def accuracy_table(rows: Sequence[ReachRow], reached: dict[str, Reach]) -> str:
    """Mean accuracy over seeds, an arm a line; brackets where nothing leads from the pair to the question."""
    distances = sorted({row.distance for row in rows})
    body = []
    for arm, seen in reached.items():
        own = [row for row in rows if row.pattern == arm]
        if own:
            cut = str(seen.cut) if seen.cut == seen.certain_cut else f"{seen.certain_cut} to {seen.cut}"
            body.append([f"`{arm}`", cut, *(_cell(own, distance) for distance in distances)])
    return markdown_table(" | ".join(["pattern", "cut", *map(str, distances)]), body)


def _cell(rows: Sequence[ReachRow], distance: int) -> str:
    here = [row for row in rows if row.distance == distance]
    mean = f"{sum(row.accuracy for row in here) / len(here):.2f}"
    if here[0].reached:
        return mean
    return f"[{mean}]" if not here[0].value_reached else f"({mean})"


def findings(rows: Sequence[ReachRow], reached: dict[str, Reach], chance: float) -> list[str]:
    """What the rows say of the law: beyond reach chance, within it whether it was learned."""
    blind = [row for row in rows if not row.value_reached]
    outside = [row for row in blind if not at_chance(row, chance, len(blind))]
    said = []
    if blind:
        right, asked = sum(round(row.accuracy * row.rows) for row in blind), sum(row.rows for row in blind)
        said.append(
            f"Beyond reach, where no path leads from the value to the question, {len(blind) - len(outside)} of "
            f"{len(blind)} accuracies hold chance ({chance:.3f}) in their binomial interval ({LEVEL:.0%} for all of "
            f"them together); {right:,} of {asked:,} answers were right in all, a share of {right / asked:.3f}."
        )
    for row in outside:
        said.append(f"Not at chance though beyond reach: `{row.pattern}`, seed {row.seed}, distance {row.distance}.")
    whole = {arm: [row for row in rows if row.pattern == arm and row.reached] for arm in reached}
    for title, low, high in (("every seed and distance", 0.95, 1.01), ("some only", 0.0, 0.95)):
        arms = [arm for arm, own in whole.items() if own and low <= min(row.accuracy for row in own) < high]
        if arms:
            names = ", ".join(f"`{arm}` (lowest {min(row.accuracy for row in whole[arm]):.2f})" for arm in arms)
            said.append(f"Within reach, 0.95 or more at {title}: {names}.")
    return said


def at_chance(row: ReachRow, chance: float, comparisons: int) -> bool:
    """Whether chance lies in the exact binomial interval of ``row``, one of so many that are looked at together."""
    right = round(row.accuracy * row.rows)
    interval = stats.binomtest(right, row.rows).proportion_ci(1 - (1 - LEVEL) / comparisons)
    return bool(interval.low <= chance <= interval.high)


def _legend(study: ReachStudy, chance: float) -> str:
    return (
        f"Mean over {study.seeds} seeds of the share of {study.task.rows} questions answered rightly, by distance in "
        f"tokens; chance is {chance:.3f}. *cut* is the longest distance up to which a path through the masks of the "
        f"{study.model.layers} layers leads from both tokens of every pair to the last token; two numbers where keys "
        "are chosen by content: whatever is chosen, and if the right ones are. In [square brackets] no path leads from "
        "either: chance is all there is. In (round ones) one leads from the value, not from its key: the "
        "model may see that value and tell it by elimination, since it belongs to none of the keys that it sees."
    )


def _arms_table(study: ReachStudy, rows: Sequence[ReachRow]) -> str:
    body = []
    for arm in study.arms:
        own = {row.seed: row for row in rows if row.pattern == arm.name}
        if own:
            some = next(iter(own.values()))
            losses = ", ".join(f"{row.loss:.3f}" for row in own.values())
            seconds = ", ".join(f"{row.seconds:.0f}" for row in own.values())
            share = f"{some.flops / study.flops:.4f}"
            body.append([f"`{arm.name}`", arm.about, _patterns(study, arm), f"{some.steps:,}", share, losses, seconds])
    return markdown_table(
        "pattern | what | layers | steps | FLOPs / budget | last loss by seed | seconds by seed", body
    )


def _patterns(study: ReachStudy, arm: ReachArm) -> str:
    texts = study.model.texts(arm)
    shown = texts if len(set(texts)) > 1 else texts[:1]
    return "<br>".join(f"`{text}`".replace("|", "\\|") for text in shown)


def _limits(study: ReachStudy, rows: Sequence[ReachRow]) -> list[str]:
    missing = len(study.runs) - len({(row.pattern, row.seed) for row in rows})
    chosen = [arm.name for arm in study.arms if not all(isinstance(parse_sparsity(t), Pattern) for t in arm.patterns)]
    found = [f"{missing} of {len(study.runs)} planned runs did not finish."] if missing else []
    found.append(
        "A path makes an answer possible, not learned: a figure within reach below 1 tells of these steps, this width "
        "and this optimizer. That beyond reach nothing can be learned is proved by gradients of exactly 0 in the "
        "tests, not by these runs, which only agree."
    )
    found.append(
        "Width, budget and schedule of the presets were set by trying which let small models learn the task at all: "
        "accuracies within reach are selected by that, those beyond it are not."
    )
    if chosen:
        names = ", ".join(f"`{name}`" for name in chosen)
        found.append(
            f"{names} choose keys by content: what a token did not attend to can still tell by not having been chosen, "
            "so that for them no distance is beyond reach."
        )
    found.append(
        f"{study.seeds} seeds; one task of {study.task.length} tokens; seconds are of a machine with other work."
    )
    return found


def _description(study: ReachStudy) -> StudyDescription:
    return StudyDescription(
        title=TITLE,
        question=QUESTION,
        config=study.settings,
        corpus=(f"`{study.task.training}`",),
        machine=f"{machine.describe()}; {study.workers} runs at once, a thread each",
        precision="32-true",
        conventions=(
            f"{number(study.flops)} training FLOPs a run in the `exact` convention: matrix products only, over visible "
            "(query, key) pairs, choosing keys included, backward twice the forward.",
            f"Asked are {study.task.rows} rows at each distance, of a seed that no run is trained on, of each row its "
            "last question.",
        ),
        seconds_source="wall-clock of the training steps, with whatever else the machine did meanwhile",
        code_version=code_version(),
        command=shlex.join(["python", *sys.argv]),
    )
