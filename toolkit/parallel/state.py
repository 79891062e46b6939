"""A spread model's and optimizer's state as one process would have it, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from toolkit.checks import require
from toolkit.parallel.sharded import reshard
from toolkit.parallel.tensor import RowOrder, row_orders


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of ``model`` with whole plain tensors in the model's own layout, as if it was not spread.

    A collective call: every process gets it. As in torch's own, what was whole already shares the model's memory.
    """
    orders = row_orders(model)
    return {name: _whole(tensor, orders.get(name)) for name, tensor in model.state_dict().items()}


def full_gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients that ``model``'s parameters have, whole and in the model's own layout; a collective call."""
    reshard(model)
    orders, parameters = row_orders(model), model.named_parameters()
    found = ((name, parameter.grad) for name, parameter in parameters)
    return {name: _whole(gradient, orders.get(name)) for name, gradient in found if gradient is not None}


@torch.no_grad()
def load_full_state_dict(model: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> None:
    """Load what :func:`full_state_dict` gave, or an unspread model's state dict; each process keeps its own part.

    Raises:
        ValueError: if names differ (with ``strict``), or a shape.
    """
    here, orders = model.state_dict(), row_orders(model)
    missing, unknown = sorted(here.keys() - state.keys()), sorted(state.keys() - here.keys())
    require(not strict or not missing, "state", f"without {missing}", "of the same names as the model's")
    require(not strict or not unknown, "state", f"with {unknown}", "of the same names as the model's")
    for name in here.keys() & state.keys():
        tensor, given = here[name], state[name]
        require(tensor.shape == given.shape, f"state[{name!r}].shape", tuple(given.shape), f"{tuple(tensor.shape)}")
        own, part = tensor, given
        if isinstance(tensor, DTensor):
            own, part = tensor.to_local(), _part(given, tensor, orders.get(name))
        own.copy_(part)


def full_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """The optimizer's state dict with whole plain tensors in the model's own layout; a collective call."""
    orders = row_orders(model)
    return _mapped(optimizer, model, optimizer.state_dict(), lambda name, _, value: _whole(value, orders.get(name)))


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load what :func:`full_optimizer_state` gave, or an unspread model's; each process keeps its own part."""
    orders = row_orders(model)

    def spread(name: str, parameter: Tensor, value: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
            return value  # Adam's step counts are scalars
        local = _part(value, parameter, orders.get(name)).clone().to(parameter.device)
        mesh, shape, stride = parameter.device_mesh, parameter.shape, parameter.stride()
        return DTensor.from_local(local, mesh, parameter.placements, run_check=False, shape=shape, stride=stride)

    optimizer.load_state_dict(_mapped(optimizer, model, state, spread))


def _mapped(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    state: Mapping[str, Any],
    change: Callable[[str, Tensor, Tensor], Tensor],
) -> dict[str, Any]:
    """An optimizer's state dict with ``change(name, parameter, value)`` in place of every tensor."""
    reshard(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    changed = {
        index: {
            key: change(names[id(parameters[index])], parameters[index], value) if isinstance(value, Tensor) else value
            for key, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": changed}


def _whole(tensor: Tensor, order: RowOrder | None) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    placements = list(tensor.placements)
    for dim in range(len(placements)):  # FSDP's, which cut what the tensor group's left, first
        placements[dim] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    full = tensor.to_local()
    return full if order is None or full.ndim == 0 else order.to_model(full)


def _part(full: Tensor, like: DTensor, order: RowOrder | None) -> Tensor:
    """This process's part of a whole tensor, as ``like`` is spread."""
    whole = full if order is None else order.to_ranks(full)
    shape, offset = compute_local_shape_and_global_offset(whole.shape, like.device_mesh, like.placements)
    return whole[tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))]
