"""torch's pipeline engine, told the shapes of a decoder's stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.nn.parallel import DistributedDataParallel

from toolkit.checks import require, require_choice, require_positive
from toolkit.parallel.pipeline.stage import DecoderStage

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


def build_schedule(
    schedule: str, stages: Sequence[PipelineStage], micro_batches: int, loss: Callable[[Tensor, Tensor], Tensor]
) -> Any:
    """The engine that runs ``stages``, this process's, with ``loss`` of the last's output; gradients as they are."""
    settings: dict[str, Any] = {"n_microbatches": micro_batches, "loss_fn": loss, "scale_grads": False}
    if schedule == "interleaved":
        return ScheduleInterleaved1F1B(list(stages), **settings)
    (stage,) = stages
    return {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}[schedule](stage, **settings)


def build_stage(
    called: nn.Module, place: int, stages: int, shape: tuple[int, int], group: dist.ProcessGroup
) -> PipelineStage:
    """The engine's view of a stage.

    Shapes are told in advance: the engine would find them by running every layer once more, which routers count.

    Args:
        called: a :class:`DecoderStage`, or it within ``DistributedDataParallel``.
        place: of how many ``stages``.
        shape: (batch, length) of a micro-batch.
        group: the pipeline's processes.
    """
    stage = called.module if isinstance(called, DistributedDataParallel) else called
    assert isinstance(stage, DecoderStage), "see the arguments"
    parameter, config = next(stage.parameters()), stage.config

    def described(width: int) -> Tensor:
        return torch.empty(*shape, width, dtype=parameter.dtype, device="meta", requires_grad=True)

    tokens = torch.empty(shape, dtype=torch.int64, device="meta")
    given = tokens if stage.is_first else described(config.dim)
    gives = described(config.vocab_size if stage.is_last else config.dim)
    return PipelineStage(called, place, stages, parameter.device, input_args=given, output_args=gives, group=group)
