"""The report of a study of context extension: tables, figures, TensorBoard, and what so small a model cannot say."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from toolkit.files import write_atomically
from toolkit.scaling import machine
from toolkit.scaling.claims import number
from toolkit.scaling.document import StudyDescription, bullets, figure_section, study_section
from toolkit.scaling.extension.claims import findings, limits
from toolkit.scaling.extension.evaluation import PASSKEY, SLIDING
from toolkit.scaling.extension.figures import draw_passkeys, draw_positions
from toolkit.scaling.extension.methods import Stretch, methods_named
from toolkit.scaling.extension.study import ExtensionStudy
from toolkit.scaling.extension.summary import ExtensionSummary, summarise
from toolkit.scaling.extension.table import AS_IS, TUNED, Measurement
from toolkit.scaling.extension.tables import (
    by_length,
    effective_table,
    evaluation_seconds,
    method_table,
    spent_table,
    training_flops_apart,
)
from toolkit.scaling.figures import ReportFigure, save_figure
from toolkit.training.precision import resolve_precision
from toolkit.training.provenance import code_version

TITLE = "Context extension"
QUESTION = (
    "A model trained at L tokens is read at longer ones: what does each scaling of its rotary embedding keep of its "
    "loss and of its passkeys, as it is, and after a short fine-tune that costs every method the same FLOPs?"
)
TABLE = "results.csv"
BOARD = "board"


def write_extension_report(study: ExtensionStudy, rows: Sequence[Measurement]) -> Path:
    """Draw the figures and write report.md, report.html and TensorBoard's board into the study's folder.

    Returns the Markdown's path.

    Raises:
        ValueError: the baseline was not evaluated.
    """
    from toolkit.scaling.page.page import write_page

    summary, description = summarise(rows), _description(study)
    tuned_at = study.length * study.config.tune_multiple
    figures = {"loss_by_position": draw_positions(summary, tuned_at), "passkeys": draw_passkeys(summary)}
    folder = study.folder.path
    positions = (
        f"Bits per byte by position in contexts of {summary.lengths[-1]:,} tokens of whole validation files, mean "
        f"over seeds; dashed L = {study.length:,}, dotted the fine-tune's context of {tuned_at:,}. All runs of "
        f"`{TABLE}`."
    )
    if {"ntk", "dynamic-ntk"} <= set(summary.methods):
        positions += " As is, `ntk` lies under `dynamic-ntk`: at s L tokens the two are one law."
    keys = (
        f"Whole passkeys found, in percent of {study.evaluation.rows} rows a cell and seed, by length and depth; "
        f"above as is, below after the fine-tune. All runs of `{TABLE}`."
    )
    captions = {"loss_by_position": positions, "passkeys": keys}
    drawn = [
        save_figure(figure, folder / f"{name}.png", captions[name]).backed(command=description.command)
        for name, figure in figures.items()
    ]
    write_board(folder / BOARD, summary, figures)
    path = folder / "report.md"
    write_atomically(path, extension_report(study, summary, drawn, description))
    write_page(path, drawn, path.with_suffix(".html"), TITLE)
    return path


def extension_report(
    study: ExtensionStudy, summary: ExtensionSummary, figures: Sequence[ReportFigure], description: StudyDescription
) -> str:
    """The report as Markdown."""
    length, config = study.length, study.config
    stretch = Stretch(length, float(config.multiples[-1]), study.model.head_dim, study.model.rope_base)
    low, high = training_flops_apart(summary)
    seeds = len(summary.seeds)
    seeds_text = "one seed, so no interval: what another seed would change is not known" if seeds == 1 else (
        f"{seeds} seeds; in brackets half the width of a 95% interval over them (Student's t)"
    )  # fmt: skip
    base_flops = sum(base.flops for base in study.bases) / len(study.bases)
    sections = [
        f"# {TITLE}",
        f"**Question.** {QUESTION}",
        "## What was found",
        bullets(findings(summary, length * config.tune_multiple)),
        "## Loss",
        f"Bits per byte of {study.evaluation.blocks} stretches of {summary.lengths[-1]:,} tokens of whole validation "
        "files by a window of that many tokens, moved on by half of it: every length is scored on the same tokens, "
        f"each of which sees at most a window. The column {length:,} of `none` as is is what the model does without "
        f"any extension, by forgetting; {seeds_text}.",
        by_length(summary, SLIDING, "{:.3f}"),
        "## Passkeys",
        f"The share of whole passkeys of {config.digits} digits found, mean over {len(study.evaluation.depths)} "
        f"depths ({study.evaluation.rows * len(study.evaluation.depths)} rows a length and seed; by guessing one "
        f"finds {0.1**config.digits:.1g} of them).",
        by_length(summary, PASSKEY, "{:.2f}"),
        "Effective length: the longest at which at least 0.85 of the passkeys are found that the base model finds at "
        "L (NoLiMa's rule, Modarressi et al. 2025, with one base score for all).",
        effective_table(summary),
        *figure_section(figures, study.folder.path),
        "## What was spent",
        f"Fine-tunes of {low} to {high} FLOPs at {length * config.tune_multiple:,} tokens, {config.extra_share:g} of "
        f"the base run's {number(base_flops)}, on text and passkeys in the same shares, `none` like the others, so "
        "that the fine-tune is not taken for the method. All evaluations together took "
        f"{evaluation_seconds(summary):.0f} seconds.",
        spent_table(summary),
        "## The methods",
        f"The same weights with L = {length:,} and one target for all, s = {config.multiples[-1]}: nothing is set "
        "anew for a shorter context, nor for the fine-tune. No setting was searched.",
        method_table(methods_named(config.methods), stretch),
        "Proportional and partial rotary embeddings are not among them: they say before training which pairs turn at "
        "all, and set afterwards change the model at every length.",
        "## What this cannot claim",
        bullets(limits(study.bases[0], summary, config, stretch)),
        *study_section(description),
    ]
    return "\n\n".join(sections) + "\n"


def write_board(folder: Path, summary: ExtensionSummary, figures: dict[str, Figure]) -> None:
    """Scalars over length, a run for each method and stage, and the figures, for TensorBoard, in place of what was."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    for method in summary.methods:
        for stage in (AS_IS, TUNED):
            with SummaryWriter(str(folder / f"{method}-{stage.replace(' ', '-')}")) as writer:
                for length in summary.lengths:
                    for metric in (SLIDING, PASSKEY):
                        writer.add_scalar(
                            f"over_length/{metric}", summary.mean(method, stage, length, metric).value, length
                        )
                for _, high, loss in summary.by_position(method, stage, summary.lengths[-1]):
                    writer.add_scalar("by_position/bits_per_byte", loss, high)
                for seed, length in summary.effective_lengths(method, stage).items():
                    writer.add_scalar("effective_length/seed", length, seed)
    with SummaryWriter(str(folder / "figures")) as writer:
        for name, figure in figures.items():
            writer.add_figure(name, figure, close=False)


def _description(study: ExtensionStudy) -> StudyDescription:
    corpus = study.prepared
    return StudyDescription(
        title=TITLE,
        question=QUESTION,
        config=study.settings,
        corpus=(*corpus.report.summary().splitlines(), f"hash {corpus.digest[:16]}"),
        machine=f"{machine.describe()}; one run at a time, threads {study.threads}, {study.parallel.device}",
        precision=resolve_precision(study.training.precision, study.parallel.device),
        conventions=(
            "FLOPs are training FLOPs in the `exact` convention at the run's own context: matrix products only, over "
            "visible (query, key) pairs, backward twice the forward. Turning by angles is no product: the scalings "
            "cost the same.",
            "Passkeys have token ids of their own after the text's; an answer is the likeliest of all ids. A row "
            "counts the same in the training loss whether text or passkey.",
        ),
        seconds_source="wall-clock of the training steps and of the evaluations, with whatever else the machine did "
        "meanwhile: the load average stands beside them, 1 being this process alone.",
        code_version=code_version(),
        command=shlex.join(["python", *sys.argv]),
    )
