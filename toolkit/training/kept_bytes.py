"""Bytes that a process keeps in a step of training, measured by what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from toolkit.layers.recomputation import Recompute, recompute_layers
from toolkit.models import Decoder, DecoderConfig
from toolkit.parallel import Meshes, ParallelConfig, build_mesh, parallelize
from toolkit.parallel.pipeline import PipelineTrainer
from toolkit.training.buffer_bytes import BufferBytes
from toolkit.training.config import TrainingConfig
from toolkit.training.optimizer import build_optimizer
from toolkit.training.parts import own_part
from toolkit.training.saved_bytes import SavedBytes, alive_bytes, local_part
from toolkit.training.step import training_loss


@dataclass(frozen=True)
class KeptBytes:
    """What one process was measured to keep, as :class:`toolkit.compute.Memory` predicts it.

    Attributes:
        parameters: weights, without copies in bf16.
        gradients: of all of them.
        optimizer: AdamW's moments.
        activations: what autograd saves, most of it at once.
        communication: what is sent and received, most of it at once.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    communication: int

    @property
    def components(self) -> dict[str, int]:
        """By name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def count_kept_bytes(
    model: DecoderConfig,
    parallel: ParallelConfig,
    batch_size: int,
    length: int,
    precision: str = "32-true",
    recompute: Recompute = "none",
) -> KeptBytes:
    """Of a step of AdamW on random tokens, on CPUs.

    :func:`toolkit.compute.memory` says what it should be. Steps before it set up what is there from then on (moments, a
    pipeline's buffers). Collective; one process needs no group.

    Args:
        model: the decoder; no activation may have the shape of a weight, by which copies of weights are told.
        parallel: as many processes as the default group has.
        batch_size: sequences that one reader takes; with a pipeline in as many micro-batches as ``parallel`` says.
        length: tokens of a sequence.
        precision: ``"32-true"`` or ``"bf16-mixed"``.
        recompute: what layers compute again. Above ``"none"`` activations are what a forward of one process leaves
            alive; of several nothing is measured but what autograd's hooks are shown.
    """
    torch.manual_seed(0)
    decoder = Decoder(model)
    recompute_layers(decoder, recompute)
    windows = torch.randint(model.vocab_size, (batch_size, length + 1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        forward, step = _trained(decoder, parallel, windows)
        optimizer = build_optimizer(decoder, TrainingConfig(steps=1))
        step()
        optimizer.step()
        parameters = list(decoder.parameters())
        moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
        held = _nbytes(parameters), _nbytes(each.grad for each in parameters if each.grad is not None), _nbytes(moments)
        decoder.zero_grad(set_to_none=True)
        if recompute != "none" and parallel.world_size == 1:
            return KeptBytes(*held, alive_bytes(decoder, forward), 0)
        saved = SavedBytes(decoder)
        buffers = BufferBytes(decoder, saved)
        with saved, buffers:
            step()
            decoder.zero_grad(set_to_none=True)
            saved.most = buffers.most = 0  # it has seen now what stays from step to step
            step()
    return KeptBytes(*held, saved.most, buffers.most)


def _trained(
    decoder: Decoder, parallel: ParallelConfig, windows: Tensor
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A forward pass, and a forward and backward pass, of a decoder spread over the processes."""
    meshes: Meshes | None = None if parallel.world_size == 1 else build_mesh(parallel)
    if meshes is not None and parallel.pipeline > 1:
        trainer = PipelineTrainer(decoder, meshes, length=windows.shape[1] - 1)
        step = lambda: trainer.step(windows[:, :-1], windows[:, 1:])  # noqa: E731
        return step, step
    called = decoder if meshes is None else parallelize(decoder, meshes)
    part = own_part(windows, meshes)

    def forward() -> Tensor:
        return training_loss(called, part)[0]  # type: ignore[arg-type]  # a wrapper is called as a decoder is

    return forward, lambda: forward().backward()


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(local_part(each).nbytes for each in tensors)
