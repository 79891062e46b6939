"""Checkpoints that are whole or refused: written atomically, sealed by sha256, read without unpickling anything.

A run whose processes all hold the whole model writes one file; a sharded one writes a folder, every process its own
shards. Both can be read by runs of another number of processes and another layout.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from toolkit.training.checkpoints.export import export_safetensors
from toolkit.training.checkpoints.folder import load_checkpoint_into, read_checkpoint, write_checkpoint
from toolkit.training.checkpoints.portable import load_portable_state, portable_state
from toolkit.training.checkpoints.seal import CorruptCheckpoint, problems, require_whole, seal

if TYPE_CHECKING:
    from toolkit.training.checkpoints.store import CheckpointNotSaved, CheckpointStore

_NEED_LIGHTNING = ("CheckpointNotSaved", "CheckpointStore")

__all__ = [
    "CheckpointNotSaved",
    "CheckpointStore",
    "CorruptCheckpoint",
    "export_safetensors",
    "load_checkpoint_into",
    "load_portable_state",
    "portable_state",
    "problems",
    "read_checkpoint",
    "require_whole",
    "seal",
    "write_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _NEED_LIGHTNING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.store"), name)
