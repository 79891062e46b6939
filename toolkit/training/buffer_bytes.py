"""Bytes of the buffers that processes send from and receive into, measured while a step runs."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from toolkit.training.saved_bytes import SavedBytes, storage_of

SENDING = ("c10d", "_c10d_functional", "_dtensor", "fsdp")
"""Namespaces of torch's operators that read and write buffers of what is sent: those of FSDP2 pack and unpack them."""


LET_GO = 0.005
"""Seconds within which gloo's threads let go of what has left."""


class BufferBytes(TorchDispatchMode):
    """Within it, the bytes of what collectives and sends read and write, most of it at once; a storage counts once.

    A buffer counts from the first operator that sends or receives it, or by which FSDP2 packs or unpacks it, for as
    long as it is there. Not what autograd saves, which is an activation, nor ``model``'s own parameters and gradients.

    Args:
        model: as its optimizer has it, nothing gathered.
        saved: what autograd saves meanwhile.

    Attributes:
        most: the most that was there at once.
    """

    def __init__(self, model: nn.Module, saved: SavedBytes) -> None:
        super().__init__()
        self.most = 0
        self._own, self._saved = list(model.parameters()), saved  # FSDP2 puts gathered ones in their places
        self._found: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, note its tensors if it sends, and count what is there."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it becomes operators of plain tensors, which come here
        given = func(*args, **(kwargs or {}))
        if func.namespace in SENDING:
            for tensor in _tensors((args, kwargs or {}, given)):
                storage = tensor.untyped_storage()
                self._found.setdefault(storage._cdata, StorageWeakRef(storage))
        if self._there() > self.most:
            time.sleep(LET_GO)
            self.most = max(self.most, self._there())
        return given

    def _there(self) -> int:
        """Bytes of what is there now."""
        own = {storage_of(each).data_ptr() for each in self._own}
        own |= {storage_of(each.grad).data_ptr() for each in self._own if each.grad is not None}
        size = 0
        for key, held in list(self._found.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(held.cdata)
            if storage is None:
                del self._found[key]
            elif storage.data_ptr() not in own and storage.data_ptr() not in self._saved:
                size += storage.nbytes()
        return size


def _tensors(values: Any) -> list[Tensor]:
    """Of nested arguments."""
    if isinstance(values, AsyncCollectiveTensor):  # a promise of one
        return [values.elem]
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    return [each for value in values for each in _tensors(value)] if isinstance(values, (list, tuple)) else []
