"""Which layers each stage of a pipeline holds: as even as counted work allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from math import inf
from operator import add

from toolkit.checks import require, require_positive
from toolkit.models import Decoder
from toolkit.work import Work

Score = Callable[[float], float]


def layer_costs(decoder: Decoder, length: int) -> tuple[list[int], int]:
    """Multiply-adds of a training step over one sequence: of each layer, and of the head.

    Forward and backward, what the backend computes as the layers' own ``work`` counts it. Experts count as much as
    they do where loads are balanced; looking up the embedding is no work.

    Args:
        decoder: whole.
        length: tokens of the sequence.

    Raises:
        ValueError: if ``length`` is not positive.
    """
    require_positive(length=length)
    layers = [_multiply_adds(block.work(length)) for block in decoder.blocks]  # type: ignore[operator]
    return layers, _multiply_adds(part for part in decoder.work(length) if part.kind == "head")


def _multiply_adds(parts: Iterable[Work]) -> int:
    trained = (part for part in parts if part.phase != "evaluation")
    return round(sum(part.computed * (1 + part.computed_backward) for part in trained))


def split_layers(costs: Sequence[float], stages: int, head: float = 0.0) -> list[range]:
    """The layers of each stage: consecutive, at least one, such that the largest cost of a stage is least.

    The slowest stage sets a pipeline's pace. Among splits with the same slowest stage it is the one whose costs have
    the least sum of squares, and among those the one with the fewest layers in front.

    Args:
        costs: of each layer, in any unit.
        stages: how many.
        head: what the last stage computes besides its layers.

    Raises:
        ValueError: if there are more stages than layers, or ``stages`` is not positive.

    >>> split_layers([1, 1, 1, 1], stages=2, head=2)
    [range(0, 3), range(3, 4)]
    """
    require_positive(stages=stages)
    layers = len(costs)
    require(stages <= layers, "stages", stages, f"at most {layers}, the layers: each stage holds one or more")
    largest, _ = _cut(costs, stages, head, max, lambda cost: cost)
    _, ends = _cut(costs, stages, head, add, lambda cost: cost**2 if cost <= largest else inf)
    return [range(start, end) for start, end in pairwise((0, *ends))]


def _cut(
    costs: Sequence[float], stages: int, head: float, combine: Callable[[float, float], float], score: Score
) -> tuple[float, tuple[int, ...]]:
    """The least of all splits' scores, stage by stage combined, and the ends of that split's stages."""
    sums, layers = [0, *accumulate(costs)], len(costs)
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0, ())}  # of the first so many layers
    for stage in range(1, stages + 1):
        further = range(stage, layers + 1) if stage < stages else (layers,)
        extra = head if stage == stages else 0
        best = {
            end: min(
                (combine(value, score(sums[end] - sums[start] + extra)), (*ends, end))
                for start, (value, ends) in best.items()
                if start < end
            )
            for end in further
        }
    return best[layers]
