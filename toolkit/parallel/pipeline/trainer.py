"""Steps of training through a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from toolkit.checks import require, require_positive
from toolkit.models import Decoder
from toolkit.parallel.clip import gradient_norm
from toolkit.parallel.config import ParallelConfig
from toolkit.parallel.mesh import Meshes
from toolkit.parallel.pipeline.balance import layer_costs, split_layers
from toolkit.parallel.pipeline.gather import gather_stages
from toolkit.parallel.pipeline.losses import Loss, PipelineLosses, count_losses, require_counted_once, token_loss
from toolkit.parallel.pipeline.schedule import build_schedule, build_stage, own_errors
from toolkit.parallel.pipeline.stage import DecoderStage, keep_layers
from toolkit.parallel.pipeline.tied import TiedEmbedding
from toolkit.routing import LoadBalancingLoss, RoutingStats
from toolkit.routing.ownership import require_own_parts
from toolkit.routing.reduce import set_batch_group

OTHERS = ("shard", "context", "tensor", "expert")


class PipelineTrainer:
    """Forward and backward of a decoder whose layers several processes share.

    Layers are split by :func:`layer_costs` and :func:`split_layers`; torch's schedules run them. A step is exactly that
    of one process that accumulates the gradients of the same micro-batches, each weighing 1 / micro_batches: a loss
    over a micro-batch's tokens, such as the z-loss, is over those, and the task's loss a mean of means. A balance
    loss over the global batch counts over the processes of ``data``, and each micro-batch sees the counts of those
    before and its own (:class:`toolkit.routing.LoadBalancingLoss`). Routers' losses are means over the layers of all
    stages. Only random numbers (dropout, routers' noise) differ: each process draws its own.

    A tied head and the embedding are two copies, in the first and the last process. Each gets the sum of both gradients
    at the end of a step, so that the same optimizer keeps them the same.

    Beside activations a stage holds, of all micro-batches, room for what comes in: batch * length * dim numbers for the
    stream, and as many for its gradient.

    Between two stages a step sends micro_batches * (batch / micro_batches) * length * dim numbers forward and as many
    backward; a tied embedding adds one sum of its gradient. With ``data`` above 1 each stage is averaged over its
    copies by ``DistributedDataParallel``, in the last micro-batch's backward.

    Schedules: ``"1f1b"`` (Narayanan et al. 2019, PipeDream, arXiv 1806.03377) keeps activations of at most as many
    micro-batches as there are stages, ``"gpipe"`` (Huang et al. 2018, arXiv 1811.06965) of all; ``"interleaved"`` gives
    each process ``stages_per_process`` stages that are not neighbours, for a smaller bubble and as many times the bytes
    (Narayanan et al. 2021, arXiv 2104.04473, section 2.2).

    Args:
        decoder: whole, the same in every process, on its device; changed in place, it keeps this process's layers.
        meshes: of all processes; ``pipeline`` above 1, and besides it ``data`` only. Their config says how many
            micro-batches a process's batch has, and the schedule.
        length: tokens of a sequence, for which layers' work is counted.
        context: what forwards and the loss are computed in: autocast, say. Backwards are not.

    Attributes:
        decoder: with this process's layers; an optimizer's, a balancer's and a state dict's.
        layers: of every stage.
        stages: those of this process.

    Raises:
        ValueError: if ``pipeline`` is 1, or another size than ``data`` above 1; if there are more stages than layers;
            if a layer is computed again (:func:`toolkit.layers.recomputation.recompute_layers`, to be called before)
            whose balance loss is over the global batch.
    """

    def __init__(
        self,
        decoder: Decoder,
        meshes: Meshes,
        *,
        length: int,
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        config = meshes.config
        require_alone(config)
        require_own_parts(decoder)
        self.micro_batches = config.micro_batch_count
        require_counted_once(decoder, self.micro_batches)
        self.decoder, self.meshes, self._context = decoder, meshes, context
        self.group = meshes.world["pipeline"].get_group()
        self._loss: Loss = token_loss
        self._weight = 1.0
        self._built: dict[str, tuple[Any, Any]] = {}  # the last schedule of each use, and what it was built for
        costs, head = layer_costs(decoder, length)
        self.layers = split_layers(costs, config.pipeline * config.stages_per_process, head)
        own = range(meshes.rank_in("pipeline"), len(self.layers), config.pipeline)
        counted = count_losses(decoder)
        self._names = list(counted)
        keep_layers(decoder, {layer for place in own for layer in self.layers[place]})
        self.stages = [DecoderStage(decoder, self.layers[place], counted, self.micro_batches, context) for place in own]
        self._called = [(place, self._averaged(stage)) for place, stage in zip(own, self.stages, strict=True)]
        self._tied = TiedEmbedding(decoder, meshes)
        set_batch_group(meshes.tokens)
        for module in decoder.modules():
            if isinstance(module, LoadBalancingLoss):
                module.micro_batches = self.micro_batches

    def step(
        self,
        input_ids: Tensor,
        labels: Tensor,
        *,
        valid: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        loss: Loss = token_loss,
        weight: float = 1.0,
    ) -> PipelineLosses:
        """Forward and backward of all micro-batches; gradients are added to those that are there. Collective.

        Args:
            input_ids: int64 (batch, length), the same in every process of a pipeline.
            labels: int64 (batch, length), what follows each token; -100 where nothing is asked.
            valid, sequence_ids: see :meth:`toolkit.models.Decoder.forward`.
            loss: (logits, labels) of a micro-batch -> scalar.
            weight: of the gradients, not of what is reported: 1 / n where those of n batches are accumulated.

        Raises:
            ValueError: before anything is sent, if the shapes differ, or the batch does not divide by the
                micro-batches.
        """
        require_counted_once(self.decoder, self.micro_batches)
        for stage in self.stages:
            stage.reset()
            stage.weight = weight / self.micro_batches
        known = {"input_ids": input_ids, "valid": valid, "sequence_ids": sequence_ids}
        with self._tied.summed():
            found = self._run("step", known, labels, loss, self.micro_batches, weight)
        return self._reported([each / weight for each in found])

    @torch.no_grad()
    def evaluate(
        self,
        input_ids: Tensor,
        labels: Tensor,
        *,
        valid: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        loss: Loss = token_loss,
    ) -> PipelineLosses:
        """The losses without gradients, those of the routers in training mode only. A collective call.

        The arguments and errors are those of :meth:`step`.
        """
        for stage in self.stages:
            stage.reset()
        known = {"input_ids": input_ids, "valid": valid, "sequence_ids": sequence_ids}
        return self._reported(self._run("eval", known, labels, loss, self.micro_batches))

    @torch.no_grad()
    def forward(self, input_ids: Tensor) -> None:
        """Pass int64 (batch, length) through all stages at once, for what layers keep of it; nothing is added up.

        Collective.
        """
        before = [dict(vars(stage)) for stage in self.stages]
        for stage in self.stages:
            stage.reset()
        self._run("eval", {"input_ids": input_ids}, input_ids, token_loss, 1)
        for stage, kept in zip(self.stages, before, strict=True):
            for name in ("auxiliary", "stats", "depths", "non_finite"):
                setattr(stage, name, kept[name])

    def clip_gradients(self, max_norm: float) -> Tensor:
        """Scale all gradients by min(1, max_norm / (norm + 1e-6)), in place; the whole model's norm before, a scalar.

        A collective call. A tied embedding's gradient, which two processes have, is counted once.

        Raises:
            ValueError: if ``max_norm`` is not positive.
        """
        require_positive(max_norm=max_norm)
        parameters = list(self.decoder.parameters())
        counted = [parameter for parameter in parameters if parameter is not self._tied.copy]
        norm = gradient_norm(counted, self.group)
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    def routing_stats(self) -> dict[str, RoutingStats]:
        """What each MoE routed in the last step, by its path in the whole decoder; the same in every process.

        Sums over the micro-batches and the processes whose tokens differ. A collective call.
        """
        own = {name: stats.all_reduce().pack() for stage in self.stages for name, stats in stage.stats.items()}
        return {name: RoutingStats.unpack(packed) for name, packed in gather_stages(own, self.group).items()}

    def full_state_dict(self) -> dict[str, Tensor]:
        """The whole decoder's state dict, on the host; a collective call."""
        return gather_stages(self.decoder.state_dict(), self.group)

    def full_gradients(self) -> dict[str, Tensor]:
        """The gradients that the whole decoder's parameters have, by name, on the host; a collective call."""
        parameters = self.decoder.named_parameters()
        own = {name: each.grad for name, each in parameters if each.grad is not None}
        return gather_stages(own, self.group)

    def _run(
        self,
        what: str,
        tables: dict[str, Tensor | None],
        labels: Tensor,
        loss: Loss,
        micro_batches: int,
        weight: float = 1.0,
    ) -> list[Tensor]:
        """The schedule's ``"step"`` or ``"eval"``; in the last stage's process each micro-batch's part of the loss."""
        told = {name: table for name, table in tables.items() if table is not None}
        input_ids = told["input_ids"]
        for name, table in {"labels": labels, **told}.items():
            require(table.shape == input_ids.shape, f"{name}.shape", tuple(table.shape), f"{tuple(input_ids.shape)}")
        self._loss, self._weight = loss, weight / micro_batches
        schedule = self._scheduled(what, _micro_batch(input_ids, micro_batches), micro_batches)
        found: list[Tensor] = []
        args = (input_ids,) if self.stages[0].is_first else ()
        ending = {"target": labels, "losses": found} if self.stages[-1].is_last else {}
        with own_errors():
            getattr(schedule, what)(*args, **ending, return_outputs=False, **told)
        return found

    def _averaged(self, stage: DecoderStage) -> nn.Module:
        """The stage as it is called; balancers' biases need no copying, they move alike in every copy."""
        if self.meshes.config.data == 1:
            return stage
        group = self.meshes.world["data"].get_group()
        return DistributedDataParallel(stage, process_group=group, forward_sync_buffers=False)

    def _scheduled(self, what: str, shape: tuple[int, int], micro_batches: int) -> Any:
        """torch's schedule for micro-batches of this shape; without backwards GPipe's order is that of 1F1B."""
        wanted = shape, micro_batches, torch.is_inference_mode_enabled()  # its buffers are of that mode
        if self._built.get(what, (None,))[0] != wanted:
            size, config = len(self.layers), self.meshes.config
            kind = "gpipe" if what == "eval" and config.schedule == "1f1b" else config.schedule
            stages = [build_stage(called, place, size, shape, self.group) for place, called in self._called]
            self._built[what] = wanted, build_schedule(kind, stages, micro_batches, self._weighed)
        return self._built[what][1]

    def _weighed(self, logits: Tensor, labels: Tensor) -> Tensor:
        """A micro-batch's part of the mean."""
        with self._context():
            return self._loss(logits, labels) * self._weight

    def _reported(self, found: list[Tensor]) -> PipelineLosses:
        """The losses of all stages: one sum over the pipeline."""
        sums = torch.zeros(1 + len(self._names), dtype=torch.float64, device=next(self.decoder.parameters()).device)
        if found:
            sums[0] = torch.stack([loss.detach() for loss in found]).sum()
        for stage in self.stages:
            for name, loss in stage.auxiliary.items():
                sums[1 + self._names.index(name)] += loss
        dist.all_reduce(sums, group=self.group)
        task, *others = sums.unbind()
        return PipelineLosses(task, dict(zip(self._names, others, strict=True)))


def _micro_batch(input_ids: Tensor, parts: int) -> tuple[int, int]:
    """(batch, length) of one."""
    require(input_ids.ndim == 2, "input_ids.shape", tuple(input_ids.shape), "(batch, length)")
    batch, length = input_ids.shape
    below = batch // parts * parts
    help_ = f"a divisor of the batch of {batch}; a batch of {f'{below} or ' if below else ''}{below + parts} would do"
    require(batch > 0 and batch % parts == 0, "micro_batches", parts, help_)
    return batch // parts, length


def require_alone(config: ParallelConfig) -> None:
    """Refuse sizes that a pipeline does not stand beside.

    Raises:
        ValueError: if ``pipeline`` is 1, or another than ``data`` above 1.
    """
    require(config.pipeline > 1, "pipeline", config.pipeline, "2 or more")
    for name in OTHERS:
        require(getattr(config, name) == 1, name, getattr(config, name), "1 with a pipeline, beside which data may be")
