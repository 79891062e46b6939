"""A spread model's and optimizer's state in the model's own layout and names, so that any other spread can read it.

DTensors stay cut: torch.distributed.checkpoint lays the pieces out anew by their places in the whole. Two things do not
belong to the model and are undone: the optimizer's numbering of parameters, and the order in which tensor parallelism
keeps the rows of fused matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from toolkit.parallel.tensor.row_order import RowOrder, row_orders
from toolkit.training.checkpoints.folder import STATES, load_checkpoint_into
from toolkit.training.checkpoints.tree import put_together, take_apart


def portable_state(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """``{"state_dict": ..., "optimizer_states": [...]}`` of a module, spread or not; a collective call.

    Tensors whose rows tensor parallelism has reordered come whole.
    """
    orders = row_orders(module)
    state = {name: _in_order(tensor, orders.get(name)) for name, tensor in module.state_dict().items()}
    return {"state_dict": state, "optimizer_states": [named_state(module, optimizer)] if optimizer is not None else []}


def named_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state dict with the parameters' names in the place of their numbers; a collective call."""
    orders, names, spread = row_orders(module), _names(module, optimizer), optimizer.state_dict()
    moments = {
        names[index]: {key: _in_order(value, orders.get(names[index])) for key, value in values.items()}
        for index, values in spread["state"].items()
    }
    groups = [{**group, "params": [names[index] for index in group["params"]]} for group in spread["param_groups"]]
    return {"state": moments, "param_groups": groups}


def numbered_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`named_state` gave as ``Optimizer.load_state_dict`` takes it; one with numbers already, as it is."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    moments = {numbers[name]: values for name, values in state["state"].items()}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": moments, "param_groups": groups}


@torch.no_grad()
def load_portable_state(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, verify: bool = True
) -> dict[str, Any]:
    """Load a folder with :func:`portable_state`, and maybe more, into a module and optimizer spread in any way.

    Each process reads its own parts.

    Args:
        path: of the checkpoint.
        module: what was saved, spread or not.
        optimizer: of its parameters; its moments are made if it has none yet.
        verify: hold the checkpoint against its checksums first.

    Returns:
        The rest of the state.

    Raises:
        CorruptCheckpoint: if the checkpoint is not whole.
        ValueError: if it lacks a tensor of the module or optimizer, or has one of another shape.
    """
    if optimizer is not None:
        _make_moments(optimizer)
    state, wanted = take_apart(portable_state(module, optimizer))
    filled = {name: torch.empty_like(tensor.detach()) for name, tensor in wanted.items()}
    found = load_checkpoint_into(path, filled, elsewhere=STATES, verify=verify)
    loaded = put_together(state, filled)
    _fill_module(module, loaded["state_dict"])
    if optimizer is not None:
        moments, groups = loaded["optimizer_states"][0]["state"], found["optimizer_states"][0]["param_groups"]
        _fill_optimizer(module, optimizer, moments, groups)
    return {name: value for name, value in found.items() if name not in STATES}


def _names(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The parameters' names, by the optimizer's numbering."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _in_order(tensor: Any, order: RowOrder | None) -> Any:
    if not isinstance(tensor, DTensor) or order is None or tensor.ndim == 0:
        return tensor
    return order.to_model(tensor.full_tensor())


def _make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer that has not stepped its state, by a step that changes nothing."""
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    decays = [group.get("weight_decay", 0.0) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = group["lr"] * 0.0, 0.0
        for parameter in group["params"]:
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate, decay in zip(optimizer.param_groups, rates, decays, strict=True):
        group["lr"], group["weight_decay"] = rate, decay


def _cut_like(whole: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return whole.to(like.device)
    mesh, placements = like.device_mesh, like.placements
    shape, offset = compute_local_shape_and_global_offset(whole.shape, mesh, placements)
    part = whole[tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))]
    local = part.to(like.device).contiguous()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def _fill(own: Tensor, given: Tensor, order: RowOrder | None) -> None:
    """Copy into ``own`` the tensor of its place in the model's layout."""
    if isinstance(own, DTensor) and not isinstance(given, DTensor):
        given = _cut_like(given if order is None else order.to_ranks(given), own)
    target = own.to_local() if isinstance(own, DTensor) else own
    target.copy_(given.to_local() if isinstance(given, DTensor) else given)


def _fill_module(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    orders = row_orders(module)
    for name, own in module.state_dict().items():
        _fill(own, state[name], orders.get(name))


def _fill_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Any], groups: list[dict[str, Any]]
) -> None:
    orders, names = row_orders(module), _names(module, optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        for key, own in optimizer.state[parameter].items():
            if isinstance(own, Tensor):
                _fill(own, moments[name][key], orders.get(name))
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in saved.items() if key != "params"})
