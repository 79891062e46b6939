"""What the processes of the tests of memory over processes do."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from toolkit.layers import auxiliary_losses
from toolkit.layers.recomputation import recompute_layers
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel import ParallelConfig, build_mesh, full_gradients, parallelize
from toolkit.parallel.pipeline import PipelineTrainer
from toolkit.training import TrainingConfig, build_optimizer

ATTENTION = AttentionConfig(heads=4, kv_heads=2, head_dim=4, qk_norm=True, sinks=True)
CONFIG = DecoderConfig(
    vocab_size=34,
    dim=17 * 2,
    blocks=(
        BlockConfig(ATTENTION, FeedForwardConfig(hidden_dim=26, bias=True)),
        BlockConfig(ATTENTION, MoEConfig(6, 4, 2, shared_experts=1, shared_gate=True, bias=True)),
    ),
    tied_head=False,
)


def held_bytes(parallel: ParallelConfig) -> tuple[int, int, int]:
    """Bytes of parameters, gradients and AdamW's moments that this process has after a step."""
    model = spread(parallel, torch.float32)
    optimizer = build_optimizer(model, TrainingConfig(steps=1))
    backward(model)
    optimizer.step()
    parameters = list(model.parameters())
    states = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    gradients = [each.grad for each in parameters if each.grad is not None]
    return _nbytes(parameters), _nbytes(gradients), _nbytes(states)


def held_by_stages(config: DecoderConfig, length: int) -> int:
    """Bytes of parameters that this process of a pipeline has."""
    torch.manual_seed(0)
    meshes = build_mesh(ParallelConfig(pipeline=dist.get_world_size()))
    trainer = PipelineTrainer(Decoder(config), meshes, length=length)
    return _nbytes(list(trainer.decoder.parameters()))


def gradients(parallel: ParallelConfig, recompute: str | int) -> dict[str, Any]:
    """Whole gradients in fp64, by name."""
    model = spread(parallel, torch.float64, recompute)
    backward(model)
    return {name: each.tolist() for name, each in full_gradients(model).items()}


def spread(parallel: ParallelConfig, dtype: torch.dtype, recompute: str | int = "none") -> nn.Module:
    torch.manual_seed(0)
    model = Decoder(CONFIG).to(dtype)
    recompute_layers(model, recompute)
    return parallelize(model, build_mesh(parallel))


def backward(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(dist.get_rank())
    logits = model(torch.randint(34, (2, 8), generator=generator)).logits
    (logits.square().mean() + sum(auxiliary_losses(model).values())).backward()


def _nbytes(tensors: list[Any]) -> int:
    local = [each.to_local() if isinstance(each, DTensor) else each for each in tensors]
    return sum(_size(each) for each in local)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def all_held(cases: list[ParallelConfig]) -> list[tuple[int, int, int]]:
    """Several in the same processes."""
    return [held_bytes(parallel) for parallel in cases]


def all_gradients(parallel: ParallelConfig, policies: list[str | int]) -> list[dict[str, Any]]:
    """Several in the same processes."""
    return [gradients(parallel, policy) for policy in policies]
