"""The routers' losses of a whole model, ready to be added to the task's loss."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from toolkit.layers.depths import MixtureOfDepths
from toolkit.layers.moe import MoE
from toolkit.routing.ownership import require_own_parts


def auxiliary_losses(model: nn.Module) -> dict[str, Tensor]:
    """The losses of every MoE and MixtureOfDepths in ``model`` in its last training forward, by name.

    Each is coefficient x mean over the layers that have it, a scalar tensor that carries gradient: add
    them to the task's loss. Empty for a dense model and in eval mode.

    Raises:
        ValueError: if two routers share a loss or a balancer that keeps counts.
        RuntimeError: if they were computed without a graph (reentrant activation checkpointing does so) while
            gradients are wanted: their gradient would be lost.

    >>> moe = MoE(dim=16, hidden_dim=32, num_experts=4, top_k=2)
    >>> _ = moe(torch.randn(5, 16))
    >>> sorted(auxiliary_losses(moe))
    ['balance', 'z']
    """
    require_own_parts(model)
    found: dict[str, list[Tensor]] = defaultdict(list)
    for path, module in model.named_modules():
        if isinstance(module, (MoE, MixtureOfDepths)):
            for name, loss in module.losses.items():
                _check_graph(path, name, loss, module)
                found[name].append(loss)
    return {name: torch.stack(losses).mean() for name, losses in found.items()}


def _check_graph(path: str, name: str, loss: Tensor, layer: MoE | MixtureOfDepths) -> None:
    wanted = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in layer.router.parameters())
    if wanted and not loss.requires_grad:
        raise RuntimeError(
            f"the {name} loss of {path or 'the model'} was computed without a graph, so its gradient would be lost: "
            "use checkpoint(..., use_reentrant=False), and call auxiliary_losses under torch.no_grad() to read values"
        )
