"""The tables of a study of routing: losses and their price, balance, and what the arms are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from toolkit.scaling.comparison import ArmResult
from toolkit.scaling.course import FRACTIONS
from toolkit.scaling.document import interval_cell, markdown_table, verdict_cell
from toolkit.scaling.routing.arms import RoutingArms

_LOSS_COLUMNS = (
    "arm | bits per byte | less `{baseline}` | | seeds | steps | ms a step | seconds | time / `{baseline}` | active | "
    "parameters"
)
_HEALTH_COLUMNS = (
    "arm | MaxVio at 25% | 50% | 100% | MaxVio of the validation | dropped at 25% | 50% | 100% | token entropy (nats)"
)
_ARM_COLUMNS = "arm | what it is | router | experts | top_k | active experts"


def loss_table(arms: Sequence[ArmResult], baseline: str, *, compared: bool = True) -> str:
    """Loss, difference and price of each arm; without the comparison where there is none to make."""
    reference = next((arm for arm in arms if arm.family == baseline), None)
    body = [
        (
            f"`{arm.family}`",
            interval_cell(arm.loss, "{:.3f}"),
            interval_cell(arm.difference, "{:+.3f}") if compared else "",
            verdict_cell(arm.difference) if compared else "not causal",
            str(len(arm.rows)),
            f"{arm.rows[0].steps:,}",
            f"{1e3 * arm.step_seconds:.1f}",
            f"{arm.seconds:.1f}",
            f"{arm.seconds / reference.seconds:.2f}" if reference else "",
            f"{arm.rows[0].active_parameters:,}",
            f"{arm.rows[0].parameters:,}",
        )
        for arm in arms
    ]
    return markdown_table(_LOSS_COLUMNS.format(baseline=baseline), body)


def health_table(arms: Sequence[ArmResult]) -> str:
    """Balance, drops and decidedness of each arm that has a router."""
    body = [
        (
            f"`{arm.family}`",
            *(_figure(arm.health("max_violation", fraction)) for fraction in FRACTIONS),
            _figure(arm.health("max_violation_validation")),
            *(_figure(arm.health("dropped_share", fraction), "{:.1%}") for fraction in FRACTIONS),
            _figure(arm.health("token_entropy")),
        )
        for arm in arms
        if arm.courses
    ]
    return (
        markdown_table(_HEALTH_COLUMNS, body) if body else "None of them chooses experts, so there is no load to show."
    )


def arms_table(shape: RoutingArms) -> str:
    """What each arm is, and how wide its experts are."""
    body = [("`dense`", "one feed-forward, no router", "", "", "", "")]
    body += [
        (
            f"`{arm.name}`",
            arm.about,
            f"`{arm.router}`" if arm.router else "the default" if arm.num_experts else "",
            str(arm.num_experts) if arm.num_experts else "",
            str(arm.top_k) if arm.num_experts else "",
            f"{arm.active_experts:g}" if arm.num_experts else "",
        )
        for arm in shape.arms
    ]
    return markdown_table(_ARM_COLUMNS, body)


def _figure(value: float, form: str = "{:.2f}") -> str:
    return "" if math.isnan(value) else form.format(value)
