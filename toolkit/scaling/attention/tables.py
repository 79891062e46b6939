"""The tables of a study of attention: losses at equal FLOPs beside losses in equal time, and what the arms are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolkit.compute import cost
from toolkit.models import FeedForwardConfig
from toolkit.scaling.attention.arms import ALLOCATIONS, FULL, GLOBALS, AttentionArm, AttentionArms, family_name
from toolkit.scaling.attention.equal_seconds import TimedLoss
from toolkit.scaling.comparison import ArmResult
from toolkit.scaling.document import interval_cell, markdown_table, verdict_cell

_SIDE_BY_SIDE = (
    "family | seeds | tokens | parameters | **equal FLOPs**: bits per byte | less `full` | | ms a step | time / `full` "
    "| **equal seconds**: bits per byte | less `full` | "
)
_ARMS = "arm | what it is | patterns, by layer"


@dataclass(frozen=True)
class ContextResult:
    """What one context's runs reached at one budget of full attention.

    Attributes:
        context: tokens of a sequence.
        budget: FLOPs of each run compared at equal FLOPs.
        arms: the families at that budget, full attention first.
        seconds: that full attention needs for the budget; nan where it was not trained on it.
        timed: what each family reaches in that time, of all its budgets; none where ``seconds`` is nan.
    """

    context: int
    budget: float
    arms: tuple[ArmResult, ...]
    seconds: float
    timed: Mapping[str, TimedLoss]

    def at_equal_flops(self, family: str) -> ArmResult | None:
        """The family's runs of the budget; None where none ended."""
        return next((arm for arm in self.arms if arm.family == family), None)


def side_by_side_table(result: ContextResult) -> str:
    """Each family at equal FLOPs and in equal time."""
    return markdown_table(_SIDE_BY_SIDE, [_side_by_side(arm, result) for arm in result.arms])


def _side_by_side(arm: ArmResult, result: ContextResult) -> tuple[str, ...]:
    row = arm.rows[0]
    return (
        f"`{arm.family}`",
        str(len(arm.rows)),
        f"{row.tokens:,}",
        f"{row.parameters:,}",
        interval_cell(arm.loss, "{:.3f}"),
        interval_cell(arm.difference, "{:+.3f}"),
        verdict_cell(arm.difference),
        f"{1e3 * arm.step_seconds:.1f}",
        f"{arm.seconds / result.seconds:.2f}" if result.seconds == result.seconds else "",
        *_timed_cells(arm.family, result.timed),
    )


def _timed_cells(family: str, timed: Mapping[str, TimedLoss]) -> tuple[str, str, str]:
    """Loss in equal time, its difference to full attention, and what that says."""
    mine = timed.get(family)
    if mine is None or not mine.by_seed:
        return "", "", "unknown: one budget"
    difference = None if family == FULL else mine.less(timed[FULL])
    said = "extrapolated" if mine.extrapolated else verdict_cell(difference)
    return interval_cell(mine.mean, "{:.3f}"), interval_cell(difference, "{:+.3f}"), said


def contexts_table(results: Sequence[ContextResult], families: Sequence[str]) -> str:
    """Bits per byte of each family, less full attention's, by context: at equal FLOPs, then in equal time."""
    contexts = [result.context for result in results]
    columns = " | ".join(f"{context:,}" for context in contexts)
    body = [
        (
            f"`{family}`",
            *(_flops_cell(family, result) for result in results),
            *(_seconds_cell(family, result) for result in results),
        )
        for family in families
        if any(result.at_equal_flops(family) for result in results)
    ]
    return markdown_table(f"family | equal FLOPs: {columns} | equal seconds: {columns}", body)


def _flops_cell(family: str, result: ContextResult) -> str:
    arm = result.at_equal_flops(family)
    if arm is None:
        return ""
    return f"{arm.loss.value:.3f}" if arm.difference is None else interval_cell(arm.difference, "{:+.3f}")


def _seconds_cell(family: str, result: ContextResult) -> str:
    loss, difference, said = _timed_cells(family, result.timed)
    flag = " \N{DAGGER}" if said == "extrapolated" else ""
    return (loss.split(" ", maxsplit=1)[0] if family == FULL else difference) + flag


def arms_table(arms: Sequence[AttentionArm]) -> str:
    """What each arm is."""
    body = [(f"`{FULL}`", "every query sees all that came before", "`Causal()`")]
    body += [(f"`{arm.name}`", arm.about, _patterns(arm)) for arm in arms]
    return markdown_table(_ARMS, body)


def _patterns(arm: AttentionArm) -> str:
    """Each pattern with how many layers in a row have it."""
    runs: list[tuple[str, int]] = []
    for pattern in arm.patterns:
        if runs and runs[-1][0] == pattern:
            runs[-1] = pattern, runs[-1][1] + 1
        else:
            runs.append((pattern, 1))
    text = ", ".join(f"{count} x `{pattern}`" if len(runs) > 1 else f"`{pattern}`" for pattern, count in runs)
    return text.replace(GLOBALS, f"GlobalTokens(one in {arm.global_every})").replace("|", "\\|")


def sizes_table(shapes: Mapping[int, AttentionArms], dim: int, vocab_size: int) -> str:
    """FLOPs a token, width and hidden width of every family at each context, ``exact`` convention."""
    body = []
    first = next(iter(shapes.values()))
    for family in (FULL, *(family_name(arm.name, each) for arm in first.arms for each in ALLOCATIONS)):
        cells = []
        for context, shape in shapes.items():
            model, full = (shape.decoder(name, dim, vocab_size) for name in (family, FULL))
            flops, of_full = (cost(each, context).training_flops["exact"] for each in (model, full))
            feed_forward = model.blocks[0].feed_forward
            assert isinstance(feed_forward, FeedForwardConfig)
            cells.append(f"{flops / of_full:.3f} ({model.dim}, {feed_forward.hidden_dim})")
        body.append((f"`{family}`", *cells))
    return markdown_table("family | " + " | ".join(f"{context:,}" for context in shapes), body)
