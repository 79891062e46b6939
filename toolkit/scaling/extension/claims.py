"""What a study of context extension supports, in words, and what it cannot claim."""

from __future__ import annotations

import math

from toolkit.layers.rotary.scaling import unscaled
from toolkit.scaling.extension.evaluation import PASSKEY, SLIDING
from toolkit.scaling.extension.methods import BASELINE, Stretch
from toolkit.scaling.extension.plan import ExtensionConfig, PlannedStage
from toolkit.scaling.extension.summary import ExtensionSummary
from toolkit.scaling.extension.table import AS_IS, TUNED

LEARNED = 0.9
"""Below this share of passkeys at L the base model has not learned the task."""


def findings(summary: ExtensionSummary, tuned_at: int) -> list[str]:
    """The lines that open the report, read off the means over seeds.

    Args:
        summary: of the study.
        tuned_at: context of the fine-tune, tokens.
    """
    trained, longest = summary.lengths[0], summary.lengths[-1]
    found = summary.mean(BASELINE, AS_IS, trained, PASSKEY).value
    forgetting = summary.mean(BASELINE, AS_IS, trained, SLIDING).value
    lines = [
        f"The base model finds {found:.2f} of the passkeys at L = {trained:,}"
        + (
            ", so that what is lost at longer contexts is lost there."
            if found >= LEARNED
            else ": it has hardly learned the task, and nothing follows from the passkeys below."
        )
    ]
    for stage in (AS_IS, TUNED):
        if not _evaluated(summary, stage):
            continue
        losses = _by_method(summary, stage, longest, SLIDING)
        best = min(losses, key=losses.__getitem__)
        lines.append(
            f"At {longest:,} tokens, {stage}: the lowest loss is that of `{best}`, {losses[best]:.3f} bits per byte "
            f"(`{BASELINE}` {losses[BASELINE]:.3f}; the base model with a window of L {forgetting:.3f})."
        )
        keys = _by_method(summary, stage, longest, PASSKEY)
        most = max(keys.values())
        winners = ", ".join(f"`{name}`" for name, value in keys.items() if value == most)
        lines.append(
            f"Passkeys at {longest:,}, {stage}: most are found by {winners}, {most:.2f} (`{BASELINE}` "
            f"{keys[BASELINE]:.2f})."
            if most > 0
            else f"Passkeys at {longest:,}, {stage}: no method finds any."
        )
        paying = [name for name, loss in losses.items() if loss < forgetting]
        lines.append(
            f"Below the loss of a window of L, {stage} at {longest:,}: "
            + (", ".join(f"`{name}`" for name in paying) if paying else "no method")
            + (f" (fine-tuned at {tuned_at:,})." if stage == TUNED else ".")
        )
    return lines


def limits(base: PlannedStage, summary: ExtensionSummary, config: ExtensionConfig, stretch: Stretch) -> list[str]:
    """What no such study can claim, whatever its numbers."""
    seeds = len(summary.seeds)
    frequencies = unscaled(stretch.rotary_dim, stretch.base).tolist()
    turning = sum(2 * math.pi / frequency <= stretch.length for frequency in frequencies)
    return [
        f"{base.cost.total_parameters:,} parameters, trained on {base.training.steps:,} steps at {stretch.length:,} "
        "tokens: an order found here need not hold for models of billions of parameters trained at thousands. Of a "
        f"head's {len(frequencies)} pairs of dims {turning} turn once or more in L; in the models these methods were "
        "made for most do.",
        *(["One seed: small differences, of the losses too, mean nothing."] if seeds == 1 else []),
        "The temperatures of YaRN and LongRoPE are formulas fitted to large models, applied here as they are: they "
        "change the model at every length, L too.",
        "LongRoPE's factors come from a rule and not from its search; dynamic NTK has factor 1; NTK has no more than "
        "the target's factor, though it is known to want one. No method was tuned.",
        f"One fine-tune, {config.extra_share:g} of the base run's FLOPs at {config.tune_multiple} L and one learning "
        "rate: other lengths, or more compute, may order methods otherwise.",
        "The base model with a window of L, to which losses are compared, had none of the extra FLOPs.",
        "Dynamic NTK and LongRoPE change all frequencies with the length. Here each context is read at its own "
        "length in one pass; decoding from a cache of rotated keys would be another thing.",
        "A passkey asks for one marked string: finding it says little of using a long context, and text of which "
        "nothing far away helps does not ask for it. Loss falls with context here by as much as these files repeat "
        "themselves.",
    ]


def _evaluated(summary: ExtensionSummary, stage: str) -> bool:
    return not math.isnan(summary.mean(BASELINE, stage, summary.lengths[-1], SLIDING).value)


def _by_method(summary: ExtensionSummary, stage: str, length: int, metric: str) -> dict[str, float]:
    """Means over seeds of the methods that have been evaluated."""
    values = {method: summary.mean(method, stage, length, metric).value for method in summary.methods}
    return {method: value for method, value in values.items() if not math.isnan(value)}
