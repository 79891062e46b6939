"""The LightningModule that trains a decoder and measures bits per byte."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import lightning
import torch
import torch.distributed as dist
from torch import Tensor

from toolkit.checks import require_choice
from toolkit.compute import cost
from toolkit.data import Examples, as_examples
from toolkit.layers import non_finite_logits, require_finite_routing
from toolkit.layers.recomputation import recompute_layers
from toolkit.models import Decoder, DecoderConfig
from toolkit.routing import LoadBalancingLoss, update_balancers
from toolkit.routing.finite import DivergedError
from toolkit.routing.reduce import all_reduce
from toolkit.training.config import TrainingConfig
from toolkit.training.optimizer import build_optimizer, parameter_groups
from toolkit.training.passes import WholePasses
from toolkit.training.schedule import learning_rate_factor


class LanguageModel(lightning.LightningModule):
    """Next-token training of a :class:`toolkit.models.Decoder`.

    Batches are windows (batch, context + 1) int64 of text, or ``Examples`` with rows of tasks among them. Validation,
    of windows, adds up the negative log-likelihood and
    the bytes its targets stand for, over all batches and processes, so that bits per byte is one
    quotient and not a mean of means, and tokenizers can be compared.

    Router logits that are infinite or NaN, in any micro-batch or process, end the run with a ``ValueError`` that names
    the layer and the step, before the optimizer has stepped on them: it waits for the device once a step.

    Args:
        model: the decoder.
        training: how it is trained.
        byte_lengths: (vocab_size,) bytes of text that each token stands for; one each by default.

    Attributes:
        decoder: the model; in a pipeline it keeps this process's layers.
        passes: how its forwards and backwards are run; a strategy may set another.
        parameter_groups: names of the whole decoder's parameters by the optimizer's groups.
        last_loss: nats per token of the last training batch, this process's, without the routers' losses.
        non_finite: router logits that were infinite or NaN since the last optimizer step, by layer of this process.
        diverged: ranks of the processes in which a router's logits were not finite, by its layer, where known.
        bits_per_byte: of the last validation, over all processes.
    """

    def __init__(self, model: DecoderConfig, training: TrainingConfig, byte_lengths: Tensor | None = None) -> None:
        super().__init__()
        self.model_config, self.training_config = model, training
        self.decoder = Decoder(model)
        recompute_layers(self.decoder, training.recompute)
        self.passes = WholePasses(self.decoder)
        self.parameter_groups = parameter_groups(self.decoder)
        self._routers = list(non_finite_logits(self.decoder))  # of the whole model, by path
        self.flops_per_token = cost(model, training.context, training.recompute).training_flops
        self.forward_flops_per_token = cost(model, training.context).forward_flops
        self.last_loss = torch.tensor(math.nan)
        self.bits_per_byte: float | None = None
        lengths = torch.ones(model.vocab_size) if byte_lengths is None else byte_lengths
        self.byte_lengths: Tensor
        self.register_buffer("byte_lengths", lengths.double(), persistent=False)
        self._sums: list[Tensor] = []
        self.non_finite: dict[str, Tensor] = {}
        self.diverged: dict[str, list[int]] = {}
        self.save_hyperparameters({"model": model.to_dict(), "training": asdict(training)})

    @property
    def flops_per_batch(self) -> int:
        """`exact` FLOPs of one batch on one device, as Lightning's ThroughputMonitor asks for them.

        Forward and backward when training, forward only in eval mode.
        """
        per_token = self.flops_per_token if self.training else self.forward_flops_per_token
        return round(per_token["exact"] * self.training_config.tokens_per_step / self.trainer.world_size)

    def training_step(self, batch: Tensor | Examples, batch_idx: int) -> Tensor:
        """Windows (batch, context + 1), or Examples -> the loss to minimise, scalar."""
        loss, self.last_loss = self.passes.training_loss(batch)
        for path, count in self.passes.non_finite().items():
            self.non_finite[path] = self.non_finite.get(path, 0) + count
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Autograd's, where it has not been run with the forward."""
        if not self.passes.early_gradients:
            super().backward(loss, *args, **kwargs)

    def on_train_start(self) -> None:
        """Tell the losses that balance the global batch how many micro-batches it has."""
        batches = self.trainer.accumulate_grad_batches
        self.passes.weight = 1 / batches
        for loss in self._balancing():
            loss.micro_batches = batches * self.passes.micro_batches

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Refuse router logits that are not finite, of every micro-batch of the step and every process.

        Raises:
            DivergedError: naming the layer, the step and the ranks, in every process.
        """
        own, self.non_finite = self.non_finite, {}
        if not self._routers:
            return
        none = torch.zeros((), dtype=torch.int64, device=self.device)
        found = all_reduce(torch.stack([own.get(path, none) for path in self._routers]))
        counts = dict(zip(self._routers, self.passes.sum_over_stages(found), strict=True))
        try:
            require_finite_routing(self.decoder, self.global_step + 1, counts)
        except DivergedError as error:
            layer = next(path for path, count in counts.items() if count)
            ranks = ", ".join(f"rank {rank}" for rank in self.diverged.get(layer, []))
            raise DivergedError(f"{error}{ranks and f'; in {ranks}'}", error.step) from None

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Before a backward; one that comes with the forward is done by now, and the step before has freed its own."""
        if not self.passes.early_gradients:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """The optimizer's step, which Lightning asks for when all micro-batches are in; then the routers' biases move.

        Here rather than at the batch's end, so that a checkpoint made there has the biases moved.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.passes.early_gradients:
            optimizer.zero_grad(set_to_none=True)
        update_balancers(self.decoder)
        for loss in self._balancing():
            loss.reset()

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the validation before."""
        self._sums = []

    def validation_step(self, windows: Tensor | Examples, batch_idx: int) -> None:
        """Add the NLL (nats) of windows (batch, context + 1), and their targets' bytes, to the sums.

        Or of this process's part of windows, as Examples that ask for every token.
        """
        nll = self.passes.summed_nll(windows)
        self._sums.append(torch.stack([nll, self.byte_lengths[as_examples(windows).labels].sum()]))

    def on_validation_epoch_end(self) -> None:
        """Bits per byte = sum of NLL / ln 2 / sum of bytes, over every process."""
        sums = torch.stack(self._sums).sum(dim=0)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        nll, length = sums.tolist()
        self.bits_per_byte = nll / math.log(2.0) / length

    def configure_optimizers(self) -> Any:
        """AdamW, its learning rate set by the schedule before every step."""
        optimizer = build_optimizer(self.decoder, self.training_config, self.parameter_groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, self.training_config)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradient's norm, the whole model's wherever its parts are.

        Done here because Lightning refuses to beside a fused optimizer, in case its gradients are
        scaled; bf16 has no scaler.

        Raises:
            ValueError: for another algorithm than the norm's.
        """
        require_choice("gradient_clip_algorithm", gradient_clip_algorithm, (None, "norm"))
        if gradient_clip_val is not None:
            self.passes.clip_gradients(gradient_clip_val)

    def _balancing(self) -> list[LoadBalancingLoss]:
        return [module for module in self.decoder.modules() if isinstance(module, LoadBalancingLoss)]
