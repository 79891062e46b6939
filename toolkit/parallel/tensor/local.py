"""Layers that run on their process's part: parameters and head counts are local while a forward lasts.

The library's operators (attention, experts, rotary embedding) take plain tensors. So a layer's DTensors are shown to
it as the plain tensors of this process for as long as its forward runs; outside of it state dicts, optimizers and
printed models see the whole. FSDP2 may have gathered the DTensors just before: the plain tensors are views of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate

from toolkit.layers import SelfAttention
from toolkit.parallel.seeds import shared_seed
from toolkit.parallel.tensor.shares import Share

View = Callable[[DTensor], Tensor]
"""What a layer sees of a parameter while it runs."""


def own_part(parameter: DTensor) -> Tensor:
    """This process's part; its gradient is this part's."""
    return parameter.to_local()


def whole(parameter: DTensor) -> Tensor:
    """A parameter that every process has, where all compute the same with it: so is its gradient."""
    return parameter.to_local()


def summed(parameter: DTensor) -> Tensor:
    """A parameter that every process has; its gradient is the sum of theirs, each of which is of other terms."""
    return parameter.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])


def spread(parameter: DTensor) -> Tensor:
    """The parameter itself, for layers of DTensors; its gradient is spread as it is, whatever the operator gives."""
    return parameter.redistribute(placements=parameter.placements)


def view_of(share: Share, tensor: int) -> View:
    """How a parameter with this share is seen inside a layer whose output is a partial sum."""
    if share.dim is not None:
        return own_part
    return (lambda parameter: summed(parameter) / tensor) if share.added else summed


@dataclass(eq=False)
class LocalForward:
    """Shows modules their parameters, and attributes, as this process has them while one module's forward runs.

    Attributes:
        views: by module, how each of its parameters is seen, by name.
        attributes: by module, what stands in place of its attributes, by name.
    """

    views: dict[nn.Module, Mapping[str, View]] = field(default_factory=dict)
    attributes: dict[nn.Module, Mapping[str, Any]] = field(default_factory=dict)

    def around(self, module: nn.Module) -> None:
        """Have it so in every forward of ``module`` from now on."""
        before: list[tuple[nn.Module, Mapping[str, Any]]] = []

        def enter(*_: Any) -> None:
            for part, changed in self.attributes.items():
                before.append((part, {name: part.__dict__[name] for name in changed}))
                part.__dict__.update(changed)
            for part, views in self.views.items():
                # An entry of __dict__ is found before the parameter of its name, which stays where it is.
                part.__dict__.update({name: view(getattr(part, name)) for name, view in views.items()})

        def leave(*_: Any) -> None:
            for part, views in self.views.items():
                for name in views:
                    part.__dict__.pop(name, None)
            while before:
                part, changed = before.pop()
                part.__dict__.update(changed)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave, always_call=True)


def local_heads(module: nn.Module, mesh: DeviceMesh) -> dict[str, Any]:
    """The attributes of an attention layer that say which heads it has, as this process has them.

    All processes drop weights by one seed, each those of its own heads.
    """
    if not isinstance(module, SelfAttention):
        return {}
    found: dict[str, Any] = {name: getattr(module, name) // mesh.size() for name in ("heads", "kv_heads", "key_heads")}
    found["first_head"] = mesh.get_local_rank() * found["heads"]
    found["shared_seed"] = partial(shared_seed, group=mesh.get_group())
    return found
