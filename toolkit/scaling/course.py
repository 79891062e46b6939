"""How routing went over a run, read back from the run's TensorBoard events."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

FRACTIONS = (0.25, 0.5, 1.0)
"""Of the schedule, at which runs are compared."""


@dataclass(frozen=True)
class RouterCourse:
    """Curves of one run's routers, mean over layers.

    Attributes:
        curves: value by step, for each tag that ``RouterMonitor`` writes: ``"max_violation"``, ``"dropped_share"``, ...
    """

    curves: Mapping[str, Mapping[int, float]]

    def at(self, tag: str, step: float) -> float:
        """The record nearest to ``step``; nan where the tag has none."""
        curve = self.curves.get(tag, {})
        return curve[min(curve, key=lambda recorded: abs(recorded - step))] if curve else math.nan


def router_course(folder: Path) -> RouterCourse:
    """Read the curves ``router/<layer>/<tag>`` of the run in ``folder``; none where it has no MoE or no events.

    Of a step that a run recorded twice, because it was killed and went on from a checkpoint, the later record counts.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(folder.glob("events.out.tfevents.*")):
        return RouterCourse({})
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found: dict[str, dict[int, dict[str, float]]] = {}
    for name in events.Tags()["scalars"]:
        match = re.fullmatch(r"router/([^/]+)/([^/]+)", name)  # those by expert have a further part
        if match:
            layer, tag = match.groups()
            for event in sorted(events.Scalars(name), key=lambda event: float(event.wall_time)):
                found.setdefault(tag, {}).setdefault(event.step, {})[layer] = event.value
    return RouterCourse(
        {
            tag: {step: fmean(by_layer.values()) for step, by_layer in sorted(steps.items())}
            for tag, steps in found.items()
        }
    )
