"""Bytes that a process sends, counted where collectives are called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {
    "allgather": "all_gather",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "allreduce": "all_reduce",
    "all_reduce": "all_reduce",
    "alltoall": "all_to_all",
    "all_to_all": "all_to_all",
    "broadcast": "broadcast",
    "send": "send",
}
"""How the names of torch's operators begin, underscores left out, and what they are counted as."""

SHARES: dict[str, Callable[[int], float]] = {
    "all_gather": lambda n: n - 1.0,
    "reduce_scatter": lambda n: (n - 1.0) / n,
    "all_reduce": lambda n: 2.0 * (n - 1.0) / n,
    "all_to_all": lambda n: (n - 1.0) / n,
    "broadcast": lambda n: (n - 1.0) / n,
    "send": lambda n: 1.0,
}
"""Bytes sent, on average over n processes, for each byte that goes in, by algorithms that send the least (rings)."""


class SentBytes(TorchDispatchMode):
    """Within it, the bytes that this process sends in collectives, FSDP2's, DTensor's and those called by hand.

    What the algorithms that send the least do is counted (Thakur et al. 2005, "Optimization of collective communication
    operations in MPICH"), not what a backend chose; a group of one process sends nothing. Receiving is not counted.

    Attributes:
        by_kind: bytes by ``"all_gather"``, ``"reduce_scatter"``, ``"all_reduce"``, ``"all_to_all"``, ``"broadcast"``,
            ``"send"``.

    >>> with SentBytes() as sent:
    ...     _ = torch.ones(3) + 1
    >>> sent.total
    0.0
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_kind: dict[str, float] = defaultdict(float)

    @property
    def total(self) -> float:
        """Bytes in all."""
        return float(sum(self.by_kind.values()))

    def __enter__(self) -> SentBytes:
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count ``func`` if it is a collective, and call it."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it becomes operators of plain tensors, which come here
        kind = _kind(func)
        if kind is not None:
            self.by_kind[kind] += _bytes_in(args) * SHARES[kind](_processes(args))
        return func(*args, **(kwargs or {}))


def _kind(func: Any) -> str | None:
    """What a collective is counted as; None for other operators, waiting and receiving among them."""
    if func.namespace not in ("c10d", "_c10d_functional"):
        return None
    name = func._schema.name.split("::")[1].strip("_")
    return next((kind for begin, kind in KINDS.items() if name.startswith(begin)), None)


def _bytes_in(args: tuple[Any, ...]) -> int:
    """Bytes of the tensors that go in; c10d's operators may name those that come out before."""
    given = [arg if isinstance(arg, (list, tuple)) else [arg] for arg in args]
    tensors = [flat for arg in given if (flat := list(_flat(arg))) and all(isinstance(part, Tensor) for part in flat)]
    inputs = tensors[1] if len(tensors) > 1 else tensors[0]
    return sum(tensor.numel() * tensor.element_size() for tensor in inputs)


def _flat(values: Any) -> Any:
    for value in values:
        yield from _flat(value) if isinstance(value, (list, tuple)) else [value]


def _processes(args: tuple[Any, ...]) -> int:
    """Of the group: an argument of its own, or by its name."""
    for arg in args:
        if isinstance(arg, torch.ScriptObject):
            return dist.ProcessGroup.unbox(arg).size()
        if isinstance(arg, dist.ProcessGroup):
            return arg.size()
    names = [arg for arg in args if isinstance(arg, str)]
    return _resolve_process_group(names[-1]).size()  # type: ignore[arg-type]  # the reduction's name stands before
