"""What processes do in the tests of sharded checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel import (
    ParallelConfig,
    build_mesh,
    full_optimizer_state,
    full_state_dict,
    parallelize,
)
from toolkit.parallel.expert import expert_parallel
from toolkit.training import TrainingConfig, build_optimizer, training_loss
from toolkit.training.checkpoints import load_portable_state, portable_state, write_checkpoint

MODEL = DecoderConfig(
    vocab_size=32,
    dim=16,
    blocks=(
        BlockConfig(AttentionConfig(heads=4, kv_heads=2), FeedForwardConfig(24)),
        BlockConfig(
            AttentionConfig(heads=4, kv_heads=2),
            MoEConfig(8, 4, 2, router="TopKRouter(score='sigmoid', balancer=BiasBalancer())"),
        ),
    ),
)
Table = dict[str, np.ndarray]


def trained(parallel: ParallelConfig, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A decoder, spread as ``parallel`` says, and its optimizer after two steps."""
    torch.manual_seed(seed)
    decoder = Decoder(MODEL).double()
    if dist.is_initialized():
        parallelize(decoder, build_mesh(parallel))
    optimizer = build_optimizer(decoder, TrainingConfig(steps=10, learning_rate=1e-2))
    for _ in range(2):
        loss, _nll = training_loss(decoder, torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(seed)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return decoder, optimizer


def whole(decoder: nn.Module, optimizer: torch.optim.Optimizer) -> Table:
    """Weights and moments as one process has them: gathered by torch, not read from a file."""
    tables = {f"weights {name}": tensor for name, tensor in full_state_dict(decoder).items()}
    for index, values in full_optimizer_state(optimizer, decoder)["state"].items():
        tables |= {f"{index} {key}": torch.as_tensor(value) for key, value in values.items()}
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tables.items()}


def save(folder: str, parallel: ParallelConfig) -> Table:
    decoder, optimizer = trained(parallel, seed=1)
    state = {**portable_state(decoder, optimizer), "global_step": 2, "extra": {"table": torch.arange(3)}}
    write_checkpoint(state, Path(folder), sharded=True)
    return whole(decoder, optimizer)


def load(folder: str, parallel: ParallelConfig) -> tuple[Table, dict[str, Any]]:
    """Into a decoder of other weights; with an optimizer that has not stepped."""
    torch.manual_seed(2)
    decoder = Decoder(MODEL).double()
    if dist.is_initialized():
        parallelize(decoder, build_mesh(parallel))
    optimizer = build_optimizer(decoder, TrainingConfig(steps=10, learning_rate=1e-2))
    rest = load_portable_state(Path(folder), decoder, optimizer)
    return whole(decoder, optimizer), {"global_step": rest["global_step"], "extra": rest["extra"]["table"].tolist()}


class Experts(nn.Module):
    """Stacked experts (4, 3, 2), this process's cut from the whole along the first axis."""

    def __init__(self, size: int) -> None:
        super().__init__()
        values = torch.arange(24.0, dtype=torch.float64).view(4, 3, 2)
        mesh = init_device_mesh("cpu", (dist.get_world_size() // size, size), mesh_dim_names=("expert_data", "expert"))
        self.weight = nn.Parameter(distribute_tensor(values, mesh["expert"], [Shard(0)]))


def save_experts(folder: str, size: int) -> None:
    write_checkpoint(portable_state(Experts(size)), Path(folder), sharded=True)


def load_experts(folder: str, size: int) -> list[Any]:
    experts = Experts(size)
    with torch.no_grad():
        experts.weight.to_local().fill_(-1)
    load_portable_state(Path(folder), experts)
    return [dist.get_rank(), experts.weight.to_local().tolist()]


def dealt(size: int, seed: int) -> nn.Module:
    """A decoder whose experts are shared by ``size`` processes."""
    torch.manual_seed(seed)
    decoder = Decoder(MODEL).double()
    if dist.is_initialized():
        expert_parallel(decoder, init_device_mesh("cpu", (size,), mesh_dim_names=("expert",)))
    return decoder


def save_moe(folder: str, size: int) -> Table:
    decoder = dealt(size, seed=1)
    write_checkpoint(portable_state(decoder), Path(folder), sharded=True)
    return {name: tensor.numpy() for name, tensor in full_state_dict(decoder).items()}


def load_moe(folder: str, size: int) -> Table:
    decoder = dealt(size, seed=2)
    load_portable_state(Path(folder), decoder)
    return {name: tensor.numpy() for name, tensor in full_state_dict(decoder).items()}


def save_stage(folder: str) -> None:
    """Each process has other layers, as the stages of a pipeline do."""
    rank = dist.get_rank()
    stage = nn.ModuleDict({f"layer{rank}": nn.Linear(2, 2, bias=False, dtype=torch.float64)})
    nn.init.constant_(stage[f"layer{rank}"].weight, float(rank))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(stage.parameters())
    stage[f"layer{rank}"](torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    optimizer.step()
    write_checkpoint(portable_state(stage, optimizer), Path(folder), sharded=True)


def save_callbacks(folder: str) -> None:
    """A callback keeps other numbers in each process; the first, which has more to write, has the last word."""
    rank = dist.get_rank()
    state: dict[str, Any] = {"callbacks": {"seen": torch.full((3,), rank), f"own{rank}": torch.tensor(rank)}}
    if rank == 0:
        state["state_dict"] = {"weight": torch.zeros(1000)}
    write_checkpoint(state, Path(folder), sharded=True)


def fail_to_write(folder: str, broken: int) -> str:
    """One process's disk is full while the shards are written; what the others then say."""
    from torch.distributed.checkpoint import filesystem

    decoder, optimizer = trained(ParallelConfig(devices=2, shard=2), seed=3)
    if dist.get_rank() == broken:

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        filesystem._write_files_from_queue = full
    try:
        write_checkpoint(portable_state(decoder, optimizer), Path(folder), sharded=True)
    except OSError as error:
        return str(error)
    return ""
