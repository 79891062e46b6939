"""Bytes that a process sends, counted where collectives and sends are called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

NAMESPACES = ("c10d", "_c10d_functional", "_dtensor")
"""Of torch's operators that talk to other processes."""

KINDS = {
    "allgather": "all_gather",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "allreduce": "all_reduce",
    "all_reduce": "all_reduce",
    "reduce": "reduce",
    "alltoall": "all_to_all",
    "all_to_all": "all_to_all",
    "shard_dim_alltoall": "all_to_all",
    "broadcast": "broadcast",
    "gather": "gather",
    "scatter": "scatter",
    "send": "send",
    "isend": "send",
}
"""How the names of those that send begin, underscores left out, and what they are counted as; the first that fits."""

SILENT = ("recv", "irecv", "wait_tensor", "wrap_tensor", "barrier", "monitored_barrier", "check_for_nan", "mesh_get")
"""How the names of those begin that send no tensor."""

SHARES: dict[str, Callable[[int], float]] = {
    "all_gather": lambda n: n - 1.0,
    "reduce_scatter": lambda n: (n - 1.0) / n,
    "all_reduce": lambda n: 2.0 * (n - 1.0) / n,
    "reduce": lambda n: (n - 1.0) / n,
    "broadcast": lambda n: (n - 1.0) / n,
    "gather": lambda n: (n - 1.0) / n,
    "scatter": lambda n: (n - 1.0) / n,
    "send": lambda n: 1.0,
}
"""Bytes sent, on average over n processes, for each byte that goes in, by algorithms that send the least (rings).

Of an all-to-all it is what stands in each part."""


class SentBytes(TorchDispatchMode):
    """Within it, the bytes that this process sends: in collectives and sends, called by hand or by FSDP2, DDP, DTensor,
    torch's pipelines, in forward and backward passes.

    What goes to other processes is counted: of an all-to-all all parts but one's own, by their sizes. Where an
    algorithm is free to choose who sends, it is the average over processes of those that send the least (Thakur et al.
    2005, "Optimization of collective communication operations in MPICH"), not what a backend chose. A group of one
    process sends nothing. Receiving is not counted, nor what an operator of one's own sends inside it, which torch does
    not show.

    Attributes:
        by_kind: bytes by ``"all_gather"``, ``"reduce_scatter"``, ``"all_reduce"``, ``"reduce"``, ``"all_to_all"``,
            ``"broadcast"``, ``"gather"``, ``"scatter"``, ``"send"``.

    Raises:
        RuntimeError: within it, at a call of torch.distributed that it does not know how to count.

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
        """Count ``func`` if it is a collective or a send, and call it."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it becomes operators of plain tensors, which come here
        kind = _kind(func)
        if kind is not None:
            names = (argument.name for argument in func._schema.arguments)
            self.by_kind[kind] += _leaving(kind, {**dict(zip(names, args, strict=False)), **(kwargs or {})})
        return func(*args, **(kwargs or {}))


def _kind(func: Any) -> str | None:
    """What an operator is counted as; None for those that send nothing."""
    if func.namespace not in NAMESPACES:
        return None
    name = func._schema.name.split("::")[1].strip("_")
    kind = next((kind for begin, kind in KINDS.items() if name.startswith(begin)), None)
    if kind is None and not name.startswith(SILENT):
        raise RuntimeError(f"{func}: SentBytes does not know what it sends; it knows {', '.join(KINDS)}")
    return kind


def _leaving(kind: str, given: dict[str, Any]) -> float:
    """Bytes that leave this process in a call with these arguments, by name."""
    inputs = next(list(_tensors(value)) for name, value in given.items() if name.startswith(("input", "tensor")))
    sizes = [tensor.numel() * tensor.element_size() for tensor in inputs]
    group = _group(given["process_group" if "process_group" in given else "group_name"])
    if kind != "all_to_all":
        return sum(sizes) * SHARES[kind](group.size())
    splits = given.get("input_split_sizes")
    if splits:  # rows for each process
        sizes = [sizes[0] * rows // max(sum(splits), 1) for rows in splits]
    elif len(sizes) == 1:
        sizes = [sizes[0] // group.size()] * group.size()
    return float(sum(sizes) - sizes[group.rank()])


def _tensors(values: Any) -> Iterator[Tensor]:
    """Of nested lists."""
    for value in values if isinstance(values, (list, tuple)) else [values]:
        yield from [value] if isinstance(value, Tensor) else _tensors(value)


def _group(group: Any) -> dist.ProcessGroup:
    """It itself, from its name or from what C++ calls it."""
    if isinstance(group, torch.ScriptObject):
        return dist.ProcessGroup.unbox(group)
    return _resolve_process_group(group) if isinstance(group, str) else group  # type: ignore[arg-type]
