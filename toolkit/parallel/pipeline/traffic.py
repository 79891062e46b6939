"""Bytes that a pipeline sends, from shapes alone."""

from __future__ import annotations


def stage_bytes(tokens: int, dim: int, stage: int, stages: int, itemsize: int = 4) -> int:
    """What one stage sends to its neighbours in a training step, over all micro-batches.

    The stream of ``tokens`` of width ``dim`` to the stage after it, and its gradient to the one before.

    Source: Narayanan et al. 2021 (arXiv 2104.04473), section 3.2.
    """
    neighbours = (stage > 0) + (stage < stages - 1)
    return neighbours * tokens * dim * itemsize


def stage_buffers(stage: int, stages: int, micro_batches: int, in_flight: int, *, at_once: bool) -> int:
    """Micro-batches' streams that a stage has for its neighbours, at most at once; inputs it keeps are among them.

    torch's engine receives every micro-batch of a step into memory of its own, from either side. What goes on is there
    until its backward pass and until the next has left, what goes back until it has left; GPipe and the interleaved
    schedule wait for that at the end of a step (``at_once``).
    """
    onward = micro_batches + (micro_batches if at_once else min(in_flight + 1, micro_batches))
    back = micro_batches + (micro_batches if at_once else 1)
    return (stage < stages - 1) * onward + (stage > 0) * back
