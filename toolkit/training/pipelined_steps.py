"""A few steps of training in micro-batches, through a pipeline or accumulated in one process: they must be the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from toolkit.layers import MoE, auxiliary_losses
from toolkit.layers.recomputation import Recompute, recompute_layers
from toolkit.models import Decoder, DecoderConfig
from toolkit.parallel import ParallelConfig, build_mesh
from toolkit.parallel.pipeline import PipelineTrainer, token_loss
from toolkit.routing import Assignment, LoadBalancingLoss, RoutingStats, update_balancers
from toolkit.training.config import TrainingConfig
from toolkit.training.equivalence import Steps, Table
from toolkit.training.optimizer import build_optimizer


def train_pipelined(
    model: DecoderConfig,
    parallel: ParallelConfig,
    *,
    micro_batches: int = 4,
    schedule: str = "1f1b",
    stages_per_process: int = 1,
    recompute: Recompute = "none",
    steps: int = 3,
    batch_size: int = 8,
    length: int = 16,
    dtype: torch.dtype = torch.float64,
    gradient_clip: float = 0.1,
    seed: int = 0,
) -> Steps:
    """Train a decoder of ``model`` on random tokens by AdamW, in a pipeline of the default group's processes.

    The same weights and micro-batches of the global batch, whatever ``parallel`` is. With ``pipeline=1`` one process
    accumulates the gradients of the micro-batches, by autograd alone.

    Args:
        model: the decoder.
        parallel: as many processes as there are.
        micro_batches: of a step; with ``data``, each process takes its share of every one.
        schedule, stages_per_process: see :class:`toolkit.parallel.ParallelConfig`.
        recompute: what layers compute again, see :func:`toolkit.layers.recomputation.recompute_layers`.
        steps, batch_size, length, dtype, gradient_clip, seed: see :func:`toolkit.training.equivalence.train_steps`;
            loads are of all micro-batches of the last step.
    """
    torch.manual_seed(seed)
    decoder = Decoder(model).to(dtype)
    recompute_layers(decoder, recompute)
    batches = torch.randint(model.vocab_size, (steps, batch_size, length + 1))
    if parallel.pipeline == 1:
        return _accumulated(decoder, batches, micro_batches, gradient_clip)
    settings = {"micro_batches": micro_batches, "schedule": schedule, "stages_per_process": stages_per_process}
    meshes = build_mesh(replace(parallel, **settings))  # type: ignore[arg-type]
    trainer = PipelineTrainer(decoder, meshes, length=length)
    by_process = batches.view(steps, micro_batches, meshes.batch_count, -1, length + 1)
    return _pipelined(trainer, by_process[:, :, meshes.batch_rank].flatten(1, 2), gradient_clip)


def _pipelined(trainer: PipelineTrainer, batches: Tensor, gradient_clip: float) -> Steps:
    """batches (steps, batch, length + 1) of this process."""
    optimizer = build_optimizer(trainer.decoder, _training(batches))
    losses, norms = [], []
    gradients: dict[str, Tensor] = {}
    for windows in batches:
        optimizer.zero_grad(set_to_none=True)
        loss = trainer.step(windows[:, :-1], windows[:, 1:]).total
        norms.append(trainer.clip_gradients(gradient_clip).item())
        gradients = gradients or {name: each.clone() for name, each in trainer.full_gradients().items()}
        optimizer.step()
        update_balancers(trainer.decoder)
        dist.all_reduce(loss)
        losses.append(loss.item() / dist.get_world_size())
    loads = {path: stats.load for path, stats in trainer.routing_stats().items()}
    return _steps(losses, norms, gradients, trainer.full_state_dict(), loads)


def _accumulated(decoder: Decoder, batches: Tensor, micro_batches: int, gradient_clip: float) -> Steps:
    """The same in one process."""
    for module in decoder.modules():
        if isinstance(module, LoadBalancingLoss):
            module.micro_batches = micro_batches
    optimizer = build_optimizer(decoder, _training(batches))
    losses, norms = [], []
    gradients: dict[str, Tensor] = {}
    for windows in batches:
        optimizer.zero_grad(set_to_none=True)
        total, stats = 0.0, dict[str, RoutingStats]()
        for part in windows.chunk(micro_batches):
            loss = token_loss(decoder(part[:, :-1]).logits, part[:, 1:]) + sum(auxiliary_losses(decoder).values())
            (loss / micro_batches).backward()
            total += loss.item() / micro_batches
            for path, each in _stats(decoder).items():
                stats[path] = stats[path] + each if path in stats else each
        norms.append(torch.nn.utils.clip_grad_norm_(decoder.parameters(), gradient_clip).item())
        found = ((name, parameter.grad) for name, parameter in decoder.named_parameters())
        gradients = gradients or {name: gradient.clone() for name, gradient in found if gradient is not None}
        optimizer.step()
        update_balancers(decoder)
        losses.append(total)
    loads = {path: each.load for path, each in stats.items()}
    return _steps(losses, norms, gradients, decoder.state_dict(), loads)


def _training(batches: Tensor) -> TrainingConfig:
    return TrainingConfig(steps=len(batches), learning_rate=1e-2)


def _stats(decoder: Decoder) -> dict[str, RoutingStats]:
    """Of the last forward's routers; a soft one has none."""
    layers = ((path, layer) for path, layer in decoder.named_modules() if isinstance(layer, MoE))
    return {path: moe.stats for path, moe in layers if isinstance(moe.assignment, Assignment)}


def _steps(
    losses: list[float],
    norms: list[float],
    gradients: dict[str, Tensor],
    weights: dict[str, Tensor],
    loads: dict[str, Tensor],
) -> Steps:
    def on_host(tensors: dict[str, Tensor]) -> Table:
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}

    return Steps(np.array(losses), np.array(norms), on_host(gradients), on_host(weights), on_host(loads))
