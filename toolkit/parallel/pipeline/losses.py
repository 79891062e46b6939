"""The losses of a model whose layers are in several processes: the task's, and its routers'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.checks import require
from toolkit.layers import MixtureOfDepths, MoE
from toolkit.layers.recomputation import Recomputed
from toolkit.routing import LoadBalancingLoss

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits, labels) -> scalar."""


@dataclass(frozen=True)
class PipelineLosses:
    """Losses of a step, scalars, the same in every process of a pipeline; of this pipeline's part of the batch.

    Attributes:
        task: mean over micro-batches of what the loss function gave.
        auxiliary: the routers', by name: mean over micro-batches, and over the layers of all stages that have it.
    """

    task: Tensor
    auxiliary: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """What was minimised."""
        return self.task + sum(self.auxiliary.values())


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats: logits (batch, length, vocab_size), labels int64 (batch, length), -100 left out."""
    compute = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.flatten(0, 1).to(compute), labels.flatten())


def carry_loss(y: Tensor, loss: Tensor, weight: float = 1.0) -> Tensor:
    """y (any shape), unchanged; its backward pass is also that of ``weight * loss``, a scalar.

    A stage's backward pass starts from the gradient of what it gave to the next stage, and knows no other root. So
    the losses of its routers ride on its output: when that has a gradient, whatever it is, they have theirs.
    """
    carried: Tensor = _Carry.apply(y, loss, weight)
    return carried


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, loss: Tensor, weight: float) -> Tensor:
        return y.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """The scalar's dtype and device, and the weight."""
        _, loss, ctx.weight = inputs
        ctx.dtype, ctx.device = loss.dtype, loss.device

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, torch.full((), ctx.weight, dtype=ctx.dtype, device=ctx.device), None


def count_losses(model: nn.Module) -> dict[str, int]:
    """How many layers of ``model`` have each loss in training, by its name; what their mean divides by.

    Of a whole model, before its layers part: :func:`toolkit.layers.auxiliary_losses` takes the mean over all of them.
    """
    found: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, MoE):
            found.update(str(loss.name) for loss in getattr(module.router, "losses", ()))
        elif isinstance(module, MixtureOfDepths):
            found["depth"] += 1
    return dict(sorted(found.items()))


def own_losses(stage: nn.Module, layers: Mapping[str, int], expected: Mapping[str, int]) -> dict[str, Tensor]:
    """This stage's part of :func:`toolkit.layers.auxiliary_losses` of the last forward, by name.

    Args:
        stage: some layers.
        layers: how many of the whole model have each loss.
        expected: how many of this stage.

    Raises:
        RuntimeError: if other losses came than were counted, so that the mean over layers would be another: from a
            router that does not keep them in ``losses``, or a layer that no token went through.
    """
    found: dict[str, list[Tensor]] = {}
    for module in stage.modules():
        if isinstance(module, (MoE, MixtureOfDepths)):
            for name, loss in module.losses.items():
                found.setdefault(name, []).append(loss)
    here = {name: len(losses) for name, losses in sorted(found.items())}
    if here != expected:
        raise RuntimeError(f"losses of this stage by name are {here}, but its layers were counted to have {expected}")
    return {name: torch.stack(losses).sum() / layers[name] for name, losses in found.items()}


def require_counted_once(layers: nn.Module, micro_batches: int) -> None:
    """Refuse those of ``layers`` that are computed again and have a loss whose counts go on meanwhile.

    Raises:
        ValueError: as :func:`require_no_global_counts`.
    """
    again = [layer for layer in layers.modules() if isinstance(layer.__dict__.get("forward"), Recomputed)]
    require_no_global_counts(again, micro_batches)


def require_no_global_counts(again: Iterable[nn.Module], micro_batches: int) -> None:
    """Refuse a balance loss over the global batch in layers that are computed again.

    A stage runs forwards of later micro-batches before the backward pass of an earlier one, so that such a loss,
    computed again there, would have the later counts.

    Raises:
        ValueError: naming the loss's group.
    """
    for loss in (module for layer in again for module in layer.modules() if isinstance(module, LoadBalancingLoss)):
        right = "'batch' or 'sequence' in layers that are computed again, in a pipeline with several micro-batches"
        require(loss.over != "global" or micro_batches == 1, "over", loss.over, right)
