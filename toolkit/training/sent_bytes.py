"""Bytes that a process sends in one step of training, counted while it runs."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.layers.recomputation import Recompute, recompute_layers
from toolkit.models import Decoder, DecoderConfig
from toolkit.parallel import Meshes, ParallelConfig, SentBytes, build_mesh, parallelize
from toolkit.parallel.pipeline import PipelineTrainer
from toolkit.training.parts import own_part
from toolkit.training.step import training_loss


def count_sent_bytes(
    model: DecoderConfig,
    parallel: ParallelConfig,
    batch_size: int,
    length: int,
    precision: str = "32-true",
    recompute: Recompute = "none",
) -> dict[str, float]:
    """Of a forward and backward pass of random tokens, by the collective, see :class:`toolkit.parallel.SentBytes`.

    :func:`toolkit.compute.traffic` says what their sum should be. Passes before it set things up (stages that agree to
    start, DDP's buckets) and are not counted. Collective.

    Args:
        model: the decoder.
        parallel: as many processes as the default group has.
        batch_size: sequences that one reader takes; with a pipeline as many micro-batches as stages.
        length: tokens of a sequence.
        precision: ``"32-true"`` or ``"bf16-mixed"``.
        recompute: what layers compute again.
    """
    torch.manual_seed(0)
    decoder = Decoder(model)
    recompute_layers(decoder, recompute)
    meshes = build_mesh(parallel)
    windows = torch.randint(model.vocab_size, (batch_size, length + 1))
    low = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    with low:
        return _pipelined(decoder, meshes, windows) if parallel.pipeline > 1 else _at_once(decoder, meshes, windows)


def _at_once(decoder: Decoder, meshes: Meshes, windows: Tensor) -> dict[str, float]:
    called = parallelize(decoder, meshes)
    batch = own_part(windows, meshes)
    for _ in range(3):
        with SentBytes() as sent:
            loss, _ = training_loss(called, batch)  # type: ignore[arg-type]  # a wrapper is called as a decoder is
            loss.backward()
        decoder.zero_grad(set_to_none=True)
    return dict(sent.by_kind)


def _pipelined(decoder: Decoder, meshes: Meshes, windows: Tensor) -> dict[str, float]:
    length = windows.shape[1] - 1
    trainer = PipelineTrainer(decoder, meshes, length=length)
    for _ in range(3):
        with SentBytes() as sent:
            trainer.step(windows[:, :-1], windows[:, 1:])
        trainer.decoder.zero_grad(set_to_none=True)
    return dict(sent.by_kind)
