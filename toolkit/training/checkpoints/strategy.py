"""The strategy of a spread model whose checkpoints are sharded too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from toolkit.checks import require
from toolkit.parallel import ParallelConfig
from toolkit.training.checkpoints.portable import load_portable_state, named_state, portable_state
from toolkit.training.checkpoints.store import CheckpointStore
from toolkit.training.strategy import MeshStrategy, plain


class ShardedStrategy(MeshStrategy):
    """A ``MeshStrategy`` that gathers no whole model: every process writes and reads its own shards.

    A run goes on with other sizes, or in one process, from the same folder, and from the file of one process.

    Args:
        parallel: the sizes.
    """

    def __init__(self, parallel: ParallelConfig) -> None:
        super().__init__(parallel)
        self._loaded = False

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state, spread as it is, in the model's own layout; a collective call."""
        return dict(portable_state(self._module)["state_dict"])

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state, spread as it is, by the parameters' names; a collective call."""
        state = named_state(self._module, plain(optimizer))
        return state if self._stages is None else self._stages.in_order(state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write it, all processes together."""
        self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options={"sharded": True})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Of a folder, load this process's shards at once and give the rest; of a file, all of it."""
        path, store = Path(checkpoint_path), self.checkpoint_io
        self._loaded = path.is_dir()
        if not self._loaded:
            return dict(super().load_checkpoint(checkpoint_path, weights_only=weights_only))
        verified = isinstance(store, CheckpointStore) and store.is_verified(path)
        require(len(self.optimizers) <= 1, "optimizers", len(self.optimizers), "one")
        optimizer = self.optimizers[0] if self.optimizers else None
        rest = load_portable_state(path, self._module, optimizer, verify=not verified)
        return {**rest, "state_dict": {}, "optimizer_states": []}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """From a file; a folder's shards are in their places."""
        if not self._loaded:
            super().load_model_state_dict(checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """From a file; a folder's shards are in their places."""
        if not self._loaded:
            super().load_optimizer_state_dict(checkpoint)
