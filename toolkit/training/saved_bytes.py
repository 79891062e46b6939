"""Bytes that a forward pass keeps for its backward pass, measured while they are there."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def local_part(tensor: Tensor) -> Tensor:
    """Of a DTensor; other tensors as they are. No operator runs for it, as for ``to_local()`` one would."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def storage_of(tensor: Tensor) -> torch.UntypedStorage:
    """A tensor's, of a DTensor that of its local part."""
    return local_part(tensor).untyped_storage()


class SavedBytes:
    """Within it, the bytes that autograd saves, most of them at once; a storage counts once.

    Args:
        model: whose parameters are left out, and copies of them: gathered, or in bf16. They are told by their shapes,
            so no activation may have a parameter's.

    Attributes:
        most: the most that was saved at once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.most = self._now = 0
        self._holders: dict[int, int] = {}
        self._weights: set[int] = set()
        self._shapes: set[tuple[int, ...]] = set()
        for each in model.parameters():
            self._weights.add(storage_of(each).data_ptr())
            for shape in (tuple(local_part(each).shape), tuple(each.shape)):
                self._shapes |= {shape, shape[::-1]}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def __contains__(self, pointer: int) -> bool:
        """Whether the storage that begins there is saved."""
        return pointer in self._holders

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _pack(self, tensor: Tensor) -> Any:
        storage = storage_of(tensor)
        if storage.data_ptr() in self._weights or tuple(local_part(tensor).shape) in self._shapes:
            return tensor
        return _Saved(self, tensor, storage.data_ptr(), storage.nbytes())

    def _unpack(self, packed: Any) -> Tensor:
        return packed.tensor if isinstance(packed, _Saved) else packed

    def add(self, pointer: int, size: int) -> None:
        """Count one more holder of a storage."""
        self._holders[pointer] = self._holders.get(pointer, 0) + 1
        if self._holders[pointer] == 1:
            self._now += size
            self.most = max(self.most, self._now)

    def drop(self, pointer: int, size: int) -> None:
        """Count one less."""
        self._holders[pointer] -= 1
        if not self._holders[pointer]:
            del self._holders[pointer]
            self._now -= size


class _Saved:
    """A saved tensor, until autograd lets it go."""

    def __init__(self, saved: SavedBytes, tensor: Tensor, pointer: int, size: int) -> None:
        self.saved, self.tensor, self.pointer, self.size = saved, tensor, pointer, size
        saved.add(pointer, size)

    def __del__(self) -> None:
        self.saved.drop(self.pointer, self.size)


def alive_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that a training forward leaves alive until its backward pass, where layers may be computed again.

    What autograd saves goes through its hooks; what selective checkpointing caches is held by Python objects. Of
    ``model``'s parameters, and their copies in bf16, nothing is counted, nor what was there before; a storage counts
    once.

    Args:
        model: plain tensors, whose shapes no activation in bf16 has.
        forward: gives what its backward pass starts from.
    """
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    gc.freeze()  # what is there already is not looked through
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        root = forward()
    held = [each for each in gc.get_objects() if type(each) is Tensor]
    gc.unfreeze()
    del root  # until here it held the graph
    for tensor in held:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    shapes = {tuple(each.shape) for each in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    return sum(
        tensor.untyped_storage().nbytes()
        for pointer, tensor in saved.items()
        if pointer not in weights and not (tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes)
    )
