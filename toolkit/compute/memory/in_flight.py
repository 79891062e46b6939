"""How many micro-batches the stages of a pipeline keep for their backward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from toolkit.parallel import ParallelConfig


def most_in_flight(parallel: ParallelConfig, process: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Of each stage of a process of a pipeline, the micro-batches it keeps when the process keeps most.

    Args:
        parallel: the pipeline; without one there is one micro-batch of one stage.
        process: its place in the pipeline.
        sizes: bytes that each of its stages keeps of a micro-batch.
    """
    return max(_moments(parallel, process), key=lambda kept: sum(n * size for n, size in zip(kept, sizes, strict=True)))


def _moments(parallel: ParallelConfig, process: int) -> Iterator[tuple[int, ...]]:
    """What is kept after each forward: some to begin with, then one forward for each backward.

    Forwards go through a process's stages in rounds of some micro-batches each, backwards through them the other way.

    Source: Narayanan et al. 2021 (arXiv 2104.04473), figures 3 and 4; rounds: torch's ``ScheduleInterleaved1F1B``.
    """
    stages, micro_batches = parallel.stages_per_process, parallel.micro_batch_count
    a_round = micro_batches // max(1, micro_batches // parallel.pipeline)
    kept = [0] * stages
    ahead = _ahead(parallel, process, a_round)
    for forward in range(stages * micro_batches):
        if (done := forward - ahead) >= 0:
            kept[stages - 1 - done // a_round % stages] -= 1
        kept[forward // a_round % stages] += 1
        yield tuple(kept)


def _ahead(parallel: ParallelConfig, process: int, a_round: int) -> int:
    """Forwards that run before the first backward, the one just before it among them."""
    behind = parallel.pipeline - 1 - process
    if parallel.schedule == "gpipe":
        return parallel.micro_batch_count
    if parallel.schedule == "1f1b":
        return behind + 1
    return (parallel.stages_per_process - 1) * a_round + 2 * behind + 1
