"""What the processes of the tests of activations over processes do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from toolkit.models import Decoder, DecoderConfig
from toolkit.parallel import ParallelConfig, build_mesh, parallelize
from toolkit.parallel.pipeline import PipelineTrainer
from toolkit.training.parts import own_part
from toolkit.training.step import training_loss


def kept_bytes(model: DecoderConfig, parallel: ParallelConfig, batch: int, length: int, precision: str) -> int:
    """Bytes that autograd has saved at most at once in a step, parameters left out; storages counted once."""
    torch.manual_seed(0)
    decoder, meshes = Decoder(model), build_mesh(parallel)
    windows = torch.randint(model.vocab_size, (batch, length + 1))
    low = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    saved = Saved()
    with low:
        if parallel.pipeline > 1:
            trainer = PipelineTrainer(decoder, meshes, length=length)
            trainer.step(windows[:, :-1], windows[:, 1:])
            saved.leave_out(decoder)
            with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
                trainer.step(windows[:, :-1], windows[:, 1:])
        else:
            called = parallelize(decoder, meshes)
            saved.leave_out(decoder)
            with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
                training_loss(called, own_part(windows, meshes))  # type: ignore[arg-type]
    return saved.most


class Saved:
    """Counts what is alive of what autograd saves."""

    def __init__(self) -> None:
        self.holders: dict[int, int] = {}
        self.now = self.most = 0
        self.without: set[int] = set()
        self.shapes: set[tuple[int, ...]] = set()

    def leave_out(self, model: torch.nn.Module) -> None:
        """Parameters, and what is of the shape of one: gathered, or a copy in bf16."""
        for each in model.parameters():
            local = each.to_local() if isinstance(each, DTensor) else each
            self.without.add(local.untyped_storage().data_ptr())
            for shape in (tuple(local.shape), tuple(each.shape)):
                self.shapes |= {shape, shape[::-1]}

    def pack(self, tensor: Tensor) -> Any:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        pointer, size = local.untyped_storage().data_ptr(), local.untyped_storage().nbytes()
        if pointer in self.without or tuple(local.shape) in self.shapes:
            return tensor
        self.holders[pointer] = self.holders.get(pointer, 0) + 1
        if self.holders[pointer] == 1:
            self.now += size
            self.most = max(self.most, self.now)
        return Held(self, tensor, pointer, size)

    def unpack(self, held: Any) -> Tensor:
        return held.tensor if isinstance(held, Held) else held


class Held:
    """A saved tensor, until autograd lets it go."""

    def __init__(self, saved: Saved, tensor: Tensor, pointer: int, size: int) -> None:
        self.saved, self.tensor, self.pointer, self.size = saved, tensor, pointer, size

    def __del__(self) -> None:
        self.saved.holders[self.pointer] -= 1
        if not self.saved.holders[self.pointer]:
            self.saved.now -= self.size


def all_kept(cases: list[tuple[Any, ...]]) -> list[int]:
    return [kept_bytes(*case) for case in cases]
