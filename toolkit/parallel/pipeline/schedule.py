"""torch's pipeline engine, told the shapes of a decoder's stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.nn.parallel import DistributedDataParallel

from toolkit.parallel.pipeline.stage import DecoderStage, logits_dtype


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

    def described(width: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(*shape, width, dtype=dtype, device="meta", requires_grad=True)

    tokens = torch.empty(shape, dtype=torch.int64, device="meta")
    given = tokens if stage.is_first else described(config.dim, parameter.dtype)
    logits = config.vocab_size, logits_dtype(parameter.dtype)
    gives = described(*logits) if stage.is_last else described(config.dim, parameter.dtype)
    return _Stage(called, place, stages, parameter.device, input_args=given, output_args=gives, group=group)


class _Stage(PipelineStage):
    """torch's, but that of an evaluation the last stage's logits go as soon as their loss is known.

    torch keeps every micro-batch's until the next evaluation, through all the training between.
    """

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """The micro-batch's output."""
        output = super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)
        if self.is_last and not self.has_backward:
            self.fwd_cache[fwd_chunk_id] = ((), [])
        return output


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise what a layer raised: the engine makes a ``RuntimeError`` of it that describes tensors.

    So that whoever looks at the kind of an error, or its words, finds them: out of memory, a peer that is gone.
    """
    try:
        yield
    except RuntimeError as error:
        cause = error.__cause__
        if cause is None or "failed to run" not in str(error).lower():
            raise
        raise cause from cause.__cause__
