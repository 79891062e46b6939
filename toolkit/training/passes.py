"""How a language model's forwards and backwards are run: all layers in one call, or stages of a pipeline."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from toolkit.data import Examples, as_examples
from toolkit.layers import DepthStats, MixtureOfDepths, MoE, non_finite_logits
from toolkit.models import Decoder
from toolkit.parallel import clip_gradients
from toolkit.parallel.pipeline import PipelineTrainer
from toolkit.routing import Assignment, RoutingStats
from toolkit.routing.reduce import all_reduce
from toolkit.training.step import next_token_nll, nll_of, training_loss

Value = TypeVar("Value")


class WholePasses:
    """Forwards of a decoder that has all its layers, spread within or not, and autograd's backward.

    Args:
        decoder: the model.

    Attributes:
        micro_batches: parts of a batch that a forward goes through one after another.
        weight: of a batch's gradients where those of several are accumulated, 1 / how many.
        early_gradients: whether :meth:`training_loss` leaves gradients behind, so that :meth:`backward` has nothing to
            do; they must be freed before it.
    """

    micro_batches = 1
    early_gradients = False

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.weight = decoder, 1.0

    def training_loss(self, batch: Tensor | Examples) -> tuple[Tensor, Tensor]:
        """See :func:`toolkit.training.step.training_loss`."""
        return training_loss(self.decoder, batch)

    @torch.no_grad()
    def loss_again(self, batch: Tensor | Examples) -> Tensor:
        """The loss to minimise, in the decoder's mode, without gradients."""
        return training_loss(self.decoder, batch)[0]

    def summed_nll(self, batch: Tensor | Examples) -> Tensor:
        """Nats of all that is asked, fp64."""
        return next_token_nll(self.decoder, batch, reduction="none").double().sum()

    def forward(self, input_ids: Tensor) -> None:
        """Pass int64 (batch, length) through all layers, for what they keep of it."""
        self.decoder(input_ids)

    def clip_gradients(self, max_norm: float) -> Tensor:
        """Scale the whole model's gradient to this norm at most; the norm before."""
        return clip_gradients(self.decoder.parameters(), max_norm)

    def routing(self) -> dict[str, RoutingStats]:
        """What each MoE of this process routed of the last batch, its own tokens', by path in the decoder."""
        layers = self._layers(MoE)
        return {path: moe.stats for path, moe in layers if moe.has_run and isinstance(moe.assignment, Assignment)}

    def depths(self) -> dict[str, DepthStats]:
        """What each MixtureOfDepths of this process chose, in the same way."""
        return {path: layer.stats for path, layer in self._layers(MixtureOfDepths)}

    def non_finite(self) -> dict[str, Tensor]:
        """How many router logits of the last batch were infinite or NaN, by path."""
        return non_finite_logits(self.decoder)

    def joined(self, own: Mapping[str, Value]) -> dict[str, Value]:
        """What the processes that hold other layers found for theirs, and this one for its own; a collective call."""
        return dict(own)

    def sum_over_stages(self, values: Tensor) -> Tensor:
        """values of any shape -> their sum over the processes that hold other layers; a collective call."""
        return values

    def _layers(self, kind: type[Value]) -> list[tuple[str, Value]]:
        return [(path, layer) for path, layer in self.decoder.named_modules() if isinstance(layer, kind)]


class PipelinePasses(WholePasses):
    """Forwards and backwards through a pipeline.

    Args:
        pipeline: of this process.
    """

    early_gradients = True

    def __init__(self, pipeline: PipelineTrainer) -> None:
        super().__init__(pipeline.decoder)
        self.pipeline, self.micro_batches = pipeline, pipeline.micro_batches

    def training_loss(self, batch: Tensor | Examples) -> tuple[Tensor, Tensor]:
        """The same, of the whole pipeline, in all its processes; the gradients are there."""
        losses = self.pipeline.step(*as_examples(batch), loss=_loss_of(batch), weight=self.weight)
        return losses.total, losses.task

    def loss_again(self, batch: Tensor | Examples) -> Tensor:
        """The same, of the whole pipeline, in all its processes."""
        return self.pipeline.evaluate(*as_examples(batch), loss=_loss_of(batch)).total

    def summed_nll(self, batch: Tensor | Examples) -> Tensor:
        """The same, of the whole pipeline, in all its processes."""
        return self.micro_batches * self.pipeline.evaluate(*as_examples(batch), loss=_summed).task

    def forward(self, input_ids: Tensor) -> None:
        """The same, through all stages."""
        self.pipeline.forward(input_ids)

    def clip_gradients(self, max_norm: float) -> Tensor:
        """The same, over all stages."""
        return self.pipeline.clip_gradients(max_norm)

    def routing(self) -> dict[str, RoutingStats]:
        """The same, over the micro-batches, of this process's stages."""
        return {path: stats for stage in self.pipeline.stages for path, stats in stage.stats.items()}

    def depths(self) -> dict[str, DepthStats]:
        """The same, over the micro-batches, of this process's stages."""
        return {path: stats for stage in self.pipeline.stages for path, stats in stage.depths.items()}

    def non_finite(self) -> dict[str, Tensor]:
        """The same, over the micro-batches, of this process's stages."""
        return {path: count for stage in self.pipeline.stages for path, count in stage.non_finite.items()}

    def joined(self, own: Mapping[str, Value]) -> dict[str, Value]:
        """By layer number, over all stages."""
        parts: list[dict[str, Value]] = [{} for _ in range(self.pipeline.group.size())]
        dist.all_gather_object(parts, dict(own), group=self.pipeline.group)
        found = {name: value for part in parts for name, value in part.items()}
        return {name: found[name] for name in sorted(found, key=_by_number)}

    def sum_over_stages(self, values: Tensor) -> Tensor:
        """The same, over the pipeline."""
        return all_reduce(values, self.pipeline.group)


def _loss_of(batch: Tensor | Examples) -> partial[Tensor]:
    return partial(nll_of, by_rows=not isinstance(batch, Tensor))


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    return nll_of(logits, labels, reduction="none").double().sum()


def _by_number(name: str) -> list[int | str]:
    """``layer10`` and ``blocks.10`` come after ``layer9`` and ``blocks.9``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
