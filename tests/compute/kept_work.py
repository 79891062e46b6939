"""What the processes of the tests of memory over processes do."""

from __future__ import annotations

from typing import Any

import torch

from toolkit.models import Decoder, DecoderConfig
from toolkit.parallel import ParallelConfig, build_mesh
from toolkit.parallel.context import context_parallel
from toolkit.training.kept_bytes import KeptBytes, count_kept_bytes
from toolkit.training.parts import own_part
from toolkit.training.saved_bytes import SavedBytes
from toolkit.training.step import training_loss


def all_kept(cases: list[tuple[Any, ...]]) -> list[KeptBytes]:
    """Of a step of each, in the same processes."""
    return [count_kept_bytes(*case) for case in cases]


def saved_by_heads(models: list[DecoderConfig], batch: int, length: int) -> list[int]:
    """Bytes that autograd saves of each where Ulysses shares out heads."""
    meshes = build_mesh(ParallelConfig(context=2))
    found = []
    for model in models:
        torch.manual_seed(0)
        decoder = context_parallel(Decoder(model), meshes.world["context"], method="ulysses")
        windows = torch.randint(model.vocab_size, (batch, length + 1))
        with SavedBytes(decoder) as saved:
            training_loss(decoder, own_part(windows, meshes))
        found.append(saved.most)
    return found
