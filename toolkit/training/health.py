"""Stops a run whose loss or gradient is not finite, and says where it began."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from toolkit.training.passes import WholePasses


class NotFiniteError(FloatingPointError):
    """A loss or gradient is infinite or NaN.

    Attributes:
        step: of the optimizer, counted from 1, that would have been taken on it.
    """

    def __init__(self, step: int, words: str) -> None:
        super().__init__(
            f"step {step} is not finite: {words}. The optimizer has not stepped on it, and the last "
            "checkpoint is as it was"
        )
        self.step, self._words = step, words

    def __reduce__(self) -> tuple[Any, ...]:
        """For a worker's parent: an exception is otherwise made again from its text alone."""
        return NotFiniteError, (self.step, self._words)


class FiniteLoss(lightning.Callback):
    """Refuses to let the optimizer step on a loss or gradient that is infinite or NaN, in whichever process it is.

    Every process then raises, before the weights have changed, with the step, and of each process concerned its rank
    and layer: the first whose output is not finite though its input is, found by computing the step's batches again, or
    the last parameter, in the order of the model, whose gradient is not. Checkpoints stay as they are.

    Router logits that are not finite are ``LanguageModel``'s to refuse, which is told the ranks. This callback waits
    for the device once a step, and processes agree by the maximum of one number.
    """

    def __init__(self) -> None:
        self._batches: list[Any] = []  # since the last step

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Keep the batch, in case it is to be computed again."""
        self._batches.append(batch)

    def on_before_optimizer_step(self, trainer: lightning.Trainer, module: Any, optimizer: Any) -> None:
        """Look at the loss and the gradient of the step.

        Raises:
            NotFiniteError: in every process, if one's are not finite.
        """
        batches, self._batches = self._batches, []
        bad = ~torch.isfinite(module.last_loss.detach()) | _any_gradient_is_bad(module)
        if not _in_any_process(bad):
            return
        routers = _from_all([path for path, count in module.non_finite.items() if count])
        for rank, paths in enumerate(routers):
            for path in paths:
                module.diverged.setdefault(path, []).append(rank)
        if any(routers):
            return
        with trainer.precision_plugin.forward_context():
            layer = first_bad_layer(module.passes, batches)
        own = _words(float(module.last_loss), layer, last_bad_gradient(module))
        everyone = list(enumerate(_from_all((bool(layer), own))))
        begun = [each for each in everyone if each[1][0]] or everyone  # the others' gradients follow from a bad layer
        words = [f"rank {rank}: {found}" for rank, (_, found) in begun if found]
        raise NotFiniteError(trainer.global_step + 1, "; ".join(words))


def first_bad_layer(passes: WholePasses, batches: list[Any]) -> str:
    """The first module of this process whose output is not finite while its inputs are; "" if there is none.

    Or "the loss itself", after all of them and those of other stages.
    """
    with _watched(passes.decoder) as found:
        bad = [not torch.isfinite(passes.loss_again(batch)) for batch in batches]
    layers = passes.joined(dict.fromkeys(found[:1], True))
    return found[0] if found else "the loss itself" if any(bad) and not layers else ""


def last_bad_gradient(module: nn.Module) -> str:
    """The last parameter, in the model's order, whose gradient is not finite; "" if there is none.

    The backward pass meets it first.
    """
    bad = [name for name, parameter in module.named_parameters() if _is_bad(parameter.grad)]
    return bad[-1] if bad else ""


@contextmanager
def _watched(decoder: nn.Module) -> Iterator[list[str]]:
    """The names of modules that turn finite inputs into outputs that are not, as they are found."""
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if _is_bad(output) and not any(_is_bad(value) for value in inputs):
                found.append(name)

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in decoder.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _is_bad(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_is_bad(part) for part in value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return not bool(torch.isfinite(_local(value)).all())


def _any_gradient_is_bad(module: nn.Module) -> Tensor:
    """Whether a norm is not finite; one device's answer, not waited for."""
    gradients = [_local(parameter.grad) for parameter in module.parameters() if parameter.grad is not None]
    filled = [gradient for gradient in gradients if gradient.numel()]
    if not filled:
        return torch.tensor(False)
    return ~torch.isfinite(torch.stack(torch._foreach_norm(filled, torch.inf))).all()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _words(loss: float, layer: str, gradient: str) -> str:
    """What one process found, "" if nothing."""
    if layer:
        return f"loss {loss:g}, from {layer} on"
    return f"loss {loss:g}, gradient of {gradient}" if gradient else ""


def _in_any_process(bad: Tensor) -> bool:
    flag = bad.float()
    if dist.is_initialized():
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def _from_all(value: Any) -> list[Any]:
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
