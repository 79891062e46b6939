"""The orders in which a pipeline runs its micro-batches, and how many each of them takes."""

from __future__ import annotations

from toolkit.checks import require, require_choice, require_positive

SCHEDULES = ("1f1b", "gpipe", "interleaved")


def require_schedule(schedule: str, processes: int, micro_batches: int, stages_per_process: int) -> None:
    """Refuse what the schedule cannot run.

    Raises:
        ValueError: if a count is not positive, ``schedule`` unknown, or the micro-batches do not fit it: 1F1B has one
            in every stage, interleaved 1F1B takes rounds of the same length, at least as long as there are processes.
    """
    require_positive(micro_batches=micro_batches, stages_per_process=stages_per_process)
    require_choice("schedule", schedule, SCHEDULES)
    alone = schedule == "interleaved" or stages_per_process == 1
    require(alone, "stages_per_process", stages_per_process, f"1 with schedule={schedule!r}")
    enough = schedule != "1f1b" or micro_batches >= processes
    right = f"at least {processes}, the stages, with schedule='1f1b'; 'gpipe' takes fewer"
    require(enough, "micro_batches", micro_batches, right)
    rounds = max(1, micro_batches // processes)
    whole = schedule != "interleaved" or micro_batches % rounds == 0
    right = f"a multiple of its {rounds} rounds ({micro_batches} // {processes} processes) with schedule='interleaved'"
    require(whole, "micro_batches", micro_batches, right)
