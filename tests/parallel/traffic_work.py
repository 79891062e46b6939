"""What the processes of the tests of traffic do."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from toolkit.models import Decoder, DecoderConfig
from toolkit.parallel import ParallelConfig, SentBytes, build_mesh, parallelize
from toolkit.training.step import training_loss


def collectives(numbers: int) -> dict[str, float]:
    """Bytes sent by one of each collective, of which ``numbers`` fp32 numbers go in."""
    x, world = torch.ones(numbers), dist.get_world_size()
    with SentBytes() as sent:
        dist.all_reduce(x.clone())
        dist.all_gather_into_tensor(torch.empty(numbers * world), x)
        dist.reduce_scatter_tensor(torch.empty(numbers // world), x)
        dist.all_to_all_single(torch.empty(numbers), x)
        dist.broadcast(x, 0)
    return dict(sent.by_kind)


def of_a_step(model: DecoderConfig, parallel: ParallelConfig, batch: int, length: int) -> dict[str, float]:
    """Bytes that this process sends in one forward and backward pass of fp32, by kind."""
    torch.manual_seed(0)
    decoder = Decoder(model)
    parallelize(decoder, build_mesh(parallel))
    windows = torch.randint(model.vocab_size, (batch, length + 1))
    for _ in range(2):  # the first pass of all sets things up
        with SentBytes() as sent:
            loss, _ = training_loss(decoder, windows)
            loss.backward()
        decoder.zero_grad(set_to_none=True)
    return dict(sent.by_kind)


def of_steps(cases: list[tuple[DecoderConfig, ParallelConfig]], batch: int, length: int) -> list[dict[str, Any]]:
    return [of_a_step(model, parallel, batch, length) for model, parallel in cases]
