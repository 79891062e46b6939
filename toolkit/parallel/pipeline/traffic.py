"""Bytes that a pipeline sends, from shapes alone."""

from __future__ import annotations


def stage_bytes(tokens: int, dim: int, stage: int, stages: int, itemsize: int = 4) -> int:
    """What one stage sends to its neighbours in a training step, over all micro-batches.

    The stream of ``tokens`` of width ``dim`` to the stage after it, and its gradient to the one before.

    Source: Narayanan et al. 2021 (arXiv 2104.04473), section 3.2.
    """
    neighbours = (stage > 0) + (stage < stages - 1)
    return neighbours * tokens * dim * itemsize
