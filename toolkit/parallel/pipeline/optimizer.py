"""An optimizer's state dict, of a stage's parameters and of the whole model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class StageOptimizer:
    """The optimizer's state of a module that a pipeline's processes share, in one process's numbering and back.

    Every process's optimizer has the whole model's groups in their order, each with the parameters it holds; as torch
    has it, parameters are numbered through the groups.

    Args:
        module: with this process's layers.
        groups: the names of the whole module's parameters, by group.
        group: the pipeline's processes.
    """

    def __init__(self, module: nn.Module, groups: Sequence[Sequence[str]], group: dist.ProcessGroup) -> None:
        here = {name for name, _ in module.named_parameters()}
        self.groups, self.group = groups, group
        self._own = [[name for name in names if name in here] for names in groups]

    def gathered(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """This process's optimizer's state dict -> the whole model's, on the host; a collective call."""
        names = list(chain(*self._own))
        named = {names[number]: _on_host(values) for number, values in own["state"].items()}
        parts: list[dict[str, Any]] = [{} for _ in range(self.group.size())]
        dist.all_gather_object(parts, named, group=self.group)
        numbers = _numbers(self.groups)
        state = {numbers[name]: values for part in parts for name, values in part.items()}
        groups = [
            {**group, "params": each} for group, each in zip(own["param_groups"], _by_number(self.groups), strict=True)
        ]
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def part_of(self, whole: Mapping[str, Any]) -> dict[str, Any]:
        """The whole model's optimizer's state dict -> this process's."""
        wanted, numbers = _numbers(self._own), _numbers(self.groups)
        held = {number: numbers[name] for name, number in wanted.items()}
        state = {number: whole["state"][place] for number, place in held.items() if place in whole["state"]}
        groups = [
            {**group, "params": each} for group, each in zip(whole["param_groups"], _by_number(self._own), strict=True)
        ]
        return {"state": state, "param_groups": groups}

    def in_order(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """A state by names, whose groups then name the whole model's parameters as one process's would."""
        groups = [
            {**group, "params": list(names)} for group, names in zip(named["param_groups"], self.groups, strict=True)
        ]
        return {**named, "param_groups": groups}


def _numbers(groups: Sequence[Sequence[str]]) -> dict[str, int]:
    return {name: number for number, name in enumerate(chain(*groups))}


def _by_number(groups: Sequence[Sequence[str]]) -> list[list[int]]:
    numbers = _numbers(groups)
    return [[numbers[name] for name in names] for names in groups]


def _on_host(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.cpu() if isinstance(value, torch.Tensor) else value for key, value in values.items()}
