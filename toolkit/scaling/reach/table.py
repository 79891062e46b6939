"""A row of the table of a study of reach: an arm, a seed, a distance."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReachRow:
    """How often one trained model was right at one distance.

    Attributes:
        pattern: the arm's name.
        seed: of the initialisation and of the training rows.
        distance: between the pair and the question.
        accuracy: share of the ``rows`` that are right.
        rows: questions asked.
        reached: whether the arm's masks lead from the pair to the question, if keys are chosen so.
        certain: the same, whatever is chosen.
        value_reached: whether they lead from the value at least.
        steps, flops, loss, seconds: of the run, see :class:`toolkit.training.task_training.TaskRun`.
    """

    pattern: str
    seed: int
    distance: int
    accuracy: float
    rows: int
    reached: bool
    certain: bool
    value_reached: bool
    steps: int
    flops: float
    loss: float
    seconds: float
