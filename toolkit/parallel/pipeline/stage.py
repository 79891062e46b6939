"""A stage of a pipeline: some consecutive layers of a decoder, with the embedding or the head where it has an end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.layers import DepthStats, MixtureOfDepths, MoE, Sequences, non_finite_logits
from toolkit.models import Decoder
from toolkit.models.mup import width_ratio
from toolkit.parallel.pipeline.losses import carry_loss, count_losses, own_losses
from toolkit.routing import Assignment, RoutingStats

Counts = TypeVar("Counts", RoutingStats, DepthStats, Tensor)


class DecoderStage(nn.Module):
    """Layers of a decoder as one module, that shares the decoder's parameters.

    The first stage has the embedding, the last the final norm and the head. A head that is tied is a second copy of
    the embedding, in another process.

    In training its routers' losses ride on its output, see :func:`carry_loss`, each micro-batch's with ``weight``;
    their values and the routers' counts add up until :meth:`reset`.

    Args:
        decoder: whose layers these are; whole, or with these at least.
        layers: which.
        loss_layers: how many layers of the whole model have each loss, by name.
        micro_batches: of a step; a micro-batch's losses weigh 1 / micro_batches.
        context: what its forward is computed in: autocast, say. Its backward, as torch asks of autocast, is not.

    Attributes:
        weight: of a micro-batch's losses in what is minimised; 1 / micro_batches until it is set otherwise.
        auxiliary: this stage's part of the routers' losses, means over the step's micro-batches, by name.
        stats: what each MoE routed, by its path in the decoder, over the step's micro-batches.
        depths: what each MixtureOfDepths chose, in the same way.
        non_finite: how many router logits were infinite or NaN, in the same way.
    """

    def __init__(
        self,
        decoder: Decoder,
        layers: range,
        loss_layers: Mapping[str, int],
        micro_batches: int,
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__()
        self.config = decoder.config
        self.is_first, self.is_last = layers.start == 0, layers.stop == len(decoder.blocks)
        tied = self.config.tied_head
        self.embedding = decoder.embedding if self.is_first or (self.is_last and tied) else None
        self.blocks = nn.ModuleDict({str(layer): decoder.blocks[layer] for layer in layers})
        self.norm = decoder.norm if self.is_last else None
        self.head = decoder.head if self.is_last else None
        self.micro_batches, self._loss_layers, self._own = micro_batches, loss_layers, count_losses(self.blocks)
        self.weight, self._context = 1 / micro_batches, context
        self.reset()

    def reset(self) -> None:
        """Forget the losses and counts of the step before."""
        self.auxiliary: dict[str, Tensor] = {}
        self.stats: dict[str, RoutingStats] = {}
        self.depths: dict[str, DepthStats] = {}
        self.non_finite: dict[str, Tensor] = {}

    def forward(
        self,
        x: Tensor,
        *,
        input_ids: Tensor,
        valid: Tensor | None = None,
        sequence_ids: Tensor | None = None,
    ) -> Tensor:
        """What the stage before gave, (batch, length, dim) -> the same; logits (batch, length, vocab_size) at the end.

        Args:
            x: the first stage's is ``input_ids``.
            input_ids, valid, sequence_ids: of the micro-batch, see :meth:`toolkit.models.Decoder.forward`; each stage
                is told of its tokens.
        """
        sequences = Sequences.of(input_ids, valid=valid, sequence_ids=sequence_ids)
        with self._context():
            if self.is_first:
                assert self.embedding is not None, "the first stage has it"
                x = self.embedding(sequences.token_ids)
            for layer, block in self.blocks.items():
                x = block(x, None, int(layer), sequences)
            self._count()
            if any(block.training for block in self.blocks.values()):  # the decoder's mode, which is set on its layers
                x = self._carry(x)
            return self._logits(x) if self.is_last else x

    def _carry(self, x: Tensor) -> Tensor:
        """x with this micro-batch's losses."""
        losses = own_losses(self.blocks, self._loss_layers, self._own)
        for name, loss in losses.items():
            x = carry_loss(x, loss, self.weight)
            self.auxiliary[name] = self.auxiliary.get(name, 0) + loss.detach() / self.micro_batches
        return x

    @torch.no_grad()
    def _count(self) -> None:
        for path, module in self.named_modules():
            if isinstance(module, MixtureOfDepths):
                _add(self.depths, path, module.stats)
            if isinstance(module, MoE) and module.has_run and isinstance(module.assignment, Assignment):
                _add(self.stats, path, module.stats)
        for path, count in non_finite_logits(self).items():
            _add(self.non_finite, path, count)

    def _logits(self, x: Tensor) -> Tensor:
        assert self.norm is not None, "the last stage has it"
        output = self.embedding if self.head is None else self.head
        assert output is not None, "a tied head is the embedding"
        ratio = width_ratio(self.config)
        state = self.norm(x)
        logits = F.linear(state if ratio == 1 else ratio * state, output.weight)
        return logits.to(logits_dtype(output.weight.dtype))


def logits_dtype(parameters: torch.dtype) -> torch.dtype:
    """What a stage's logits come in, autocast or not: the dtype their loss is computed in, fp32 at least."""
    return torch.promote_types(parameters, torch.float32)


def _add(sums: dict[str, Counts], path: str, counts: Counts) -> None:
    sums[path] = sums[path] + counts if path in sums else counts


def keep_layers(decoder: Decoder, layers: Collection[int]) -> None:
    """Take away what other processes hold, in place; parameters that stay keep their names.

    The embedding stays with the first layer, the final norm and the head with the last; a tied head's embedding with
    both. What is left is called by its stages, not as a decoder.
    """
    last = len(decoder.blocks) - 1
    for layer in range(last + 1):
        if layer not in layers:
            decoder.blocks.register_module(str(layer), None)
    gone = [] if last in layers else ["norm", "head"]
    if 0 not in layers and not (last in layers and decoder.config.tied_head):
        gone.append("embedding")
    for name in gone:
        setattr(decoder, name, None)
