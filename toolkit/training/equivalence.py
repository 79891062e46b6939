"""A few steps of training, alone or spread over processes, and how far two such differ.

Parallelism must change nothing but rounding: the loss, the gradients, the weights, what routers counted and where
their biases moved are those of one process on the same global batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from toolkit.data import Examples
from toolkit.layers import MoE
from toolkit.models import Decoder, DecoderConfig
from toolkit.parallel import (
    Meshes,
    ParallelConfig,
    build_mesh,
    clip_gradients,
    full_gradients,
    full_state_dict,
    parallelize,
)
from toolkit.routing import Assignment, update_balancers
from toolkit.training.config import TrainingConfig
from toolkit.training.optimizer import build_optimizer
from toolkit.training.parts import own_part
from toolkit.training.step import training_loss

Table = dict[str, np.ndarray]


@dataclass(frozen=True)
class Steps:
    """What some steps of training gave, whole and in the model's own layout, on the host.

    Attributes:
        losses: (steps,) of the global batch, the routers' losses included.
        norms: (steps,) of the gradient, before it was clipped.
        gradients: of the first step, clipped, by parameter.
        weights: after the last step, by name; buffers, such as a balancer's bias, among them.
        loads: share of the choices by expert at the last step, by MoE.
    """

    losses: np.ndarray
    norms: np.ndarray
    gradients: Table
    weights: Table
    loads: Table

    def worst_errors(self, other: Steps) -> dict[str, float]:
        """The largest differences, by what of: ``"loss"``, ``"norm"``, ``"gradients"``, ``"weights"``, ``"loads"``.

        Of losses and norms absolute; of a tensor of gradients, weights or loads relative to ``other``'s largest.

        Raises:
            ValueError: if the two are of different parameters.
        """
        return {
            "loss": float(np.abs(self.losses - other.losses).max()),
            "norm": float(np.abs(self.norms - other.norms).max()),
            "gradients": _worst(self.gradients, other.gradients),
            "weights": _worst(self.weights, other.weights),
            "loads": _worst(self.loads, other.loads),
        }


def train_steps(
    model: DecoderConfig,
    parallel: ParallelConfig,
    *,
    steps: int = 3,
    batch_size: int = 8,
    length: int = 16,
    dtype: torch.dtype = torch.float64,
    gradient_clip: float = 0.1,
    seed: int = 0,
) -> Steps:
    """Train a decoder of ``model`` on random tokens by AdamW, spread over the default group as ``parallel`` says.

    The same weights and global batches, whatever ``parallel`` is. Without a process group ``ParallelConfig()`` trains
    in this process alone.

    Args:
        model: the decoder.
        parallel: as many processes as there are.
        steps: of the optimizer.
        batch_size: sequences of the global batch.
        length: tokens of a sequence.
        dtype: of the weights.
        gradient_clip: largest norm of the gradient; small, so that clipping is active.
        seed: of the weights and tokens.
    """
    torch.manual_seed(seed)
    decoder = Decoder(model).to(dtype)
    batches = torch.randint(model.vocab_size, (steps, batch_size, length + 1))
    meshes = build_mesh(parallel) if dist.is_initialized() else None
    called = decoder if meshes is None else parallelize(decoder, meshes)
    parts = [own_part(windows, meshes) for windows in _own_rows(batches, meshes)]
    return _train(decoder, called, parts, gradient_clip)


def _train(decoder: Decoder, called: nn.Module, batches: list[Tensor | Examples], gradient_clip: float) -> Steps:
    """``called`` is what runs: the decoder, or it within a wrapper."""
    optimizer = build_optimizer(decoder, TrainingConfig(steps=len(batches), learning_rate=1e-2))
    losses, norms = [], []
    gradients: Table = {}
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        loss, _ = training_loss(called, batch)  # type: ignore[arg-type]  # a wrapper is called as a decoder is
        loss.backward()
        norms.append(clip_gradients(decoder.parameters(), gradient_clip).item())
        gradients = gradients or _on_host(full_gradients(decoder))
        optimizer.step()
        update_balancers(decoder)
        losses.append(_mean(loss.detach()))
    weights = _on_host(full_state_dict(decoder))
    return Steps(np.array(losses), np.array(norms), gradients, weights, _on_host(_loads(decoder)))


def _loads(decoder: Decoder) -> dict[str, Tensor]:
    """Of the last forward's routers; a soft one has none."""
    layers = ((path, layer) for path, layer in decoder.named_modules() if isinstance(layer, MoE))
    return {path: moe.stats.all_reduce().load for path, moe in layers if isinstance(moe.assignment, Assignment)}


def _own_rows(batches: Tensor, meshes: Meshes | None) -> Tensor:
    """batches (steps, batch, length + 1) -> this process's rows of each."""
    return batches if meshes is None else batches.chunk(meshes.batch_count, dim=1)[meshes.batch_rank]


def _mean(loss: Tensor) -> float:
    """Over all processes: those of one batch have the same."""
    if dist.is_initialized():
        loss = loss.clone()
        dist.all_reduce(loss)
        loss = loss / dist.get_world_size()
    return loss.item()


def _on_host(tensors: dict[str, Any]) -> Table:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


def _worst(here: Table, there: Table) -> float:
    if here.keys() != there.keys():
        raise ValueError(f"names={sorted(here.keys() ^ there.keys())}: they must be in both")
    errors = [np.abs(here[name] - there[name]).max() / max(np.abs(there[name]).max(), 1e-30) for name in there]
    return float(max(errors, default=0.0))
