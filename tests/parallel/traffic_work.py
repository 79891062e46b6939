"""What the processes of the tests of traffic do."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._functional_collectives import all_to_all_single

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


def uneven() -> tuple[float, float, float, float]:
    """Bytes sent by all-to-alls: by split sizes, as a list, as an operator of the functional kind; by a send."""
    rank, world = dist.get_rank(), dist.get_world_size()
    splits = [[3, 1, 4], [1, 5, 9], [2, 6, 5]]
    given, taken = splits[rank], [row[rank] for row in splits]
    x, y = torch.ones(sum(given), 2), torch.empty(sum(taken), 2)
    with SentBytes() as by_sizes:
        dist.all_to_all_single(y, x, taken, given)
    with SentBytes() as functional:
        torch.ops._c10d_functional.wait_tensor(all_to_all_single(x, taken, given, dist.group.WORLD))
    with SentBytes() as listed:
        parts = [torch.empty(rows, 2) for rows in taken]
        works = [dist.isend(part, to, tag=to) for to, part in enumerate(x.split(given)) if to != rank]
        for source in range(world):
            if source != rank:
                dist.recv(parts[source], source, tag=rank)
        for work in works:
            work.wait()
    return by_sizes.total, functional.total, listed.total, 8.0 * (sum(given) - given[rank])


def from_and_to_the_first(numbers: int) -> dict[str, float]:
    """Bytes sent by each of what has a root, of which ``numbers`` fp32 numbers go in."""
    x, (rank, world) = torch.ones(numbers), (dist.get_rank(), dist.get_world_size())
    with SentBytes() as sent:
        dist.reduce(x.clone(), 0)
        dist.gather(x, [torch.empty(numbers) for _ in range(world)] if rank == 0 else None, 0)
        dist.scatter(torch.empty(numbers // world), list(x.chunk(world)) if rank == 0 else None, 0)
        dist.barrier()
    return dict(sent.by_kind)


def of_copies() -> tuple[dict[str, float], int]:
    """Bytes that DDP sends in a backward pass, by kind, and those of the gradients."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    copies = nn.parallel.DistributedDataParallel(model)
    for _ in range(3):  # in the first two DDP arranges its buckets
        with SentBytes() as forward:
            loss = copies(torch.ones(3, 8)).sum()
        with SentBytes() as backward:
            loss.backward()
    assert forward.total == 0
    return dict(backward.by_kind), sum(each.nbytes for each in model.parameters())


def calls(numbers: int) -> tuple[dict[str, float], dict[str, float], tuple[dict[str, float], int]]:
    """All of the above of two processes."""
    return collectives(numbers), from_and_to_the_first(numbers), of_copies()


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
