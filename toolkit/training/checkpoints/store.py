"""The checkpoints of a run's folder, as a plugin of Lightning's: the last, the one before it, those kept by step."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from toolkit.training.checkpoints.folder import read_checkpoint, write_checkpoint
from toolkit.training.checkpoints.portable import numbered_state
from toolkit.training.checkpoints.publish import remove
from toolkit.training.checkpoints.seal import CorruptCheckpoint, problems

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class CheckpointNotSaved(OSError):
    """A checkpoint could not be written, for want of space, say; the ones before it are as they were."""


class CheckpointStore(CheckpointIO):
    """Writes and reads ``checkpoints/last.ckpt``, ``previous.ckpt`` and ``checkpoints/step<N>.ckpt`` in a run's folder.

    When a last checkpoint is whole, the one that was the last becomes ``previous.ckpt``; others are overwritten. With
    ``storage_options={"sharded": True}`` a state is written as a folder by all processes, else as a file by the one
    that calls.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last, self.previous = folder / "checkpoints" / LAST, folder / PREVIOUS
        self._whole: set[Path] = set()  # held against their checksums already, when it was chosen where to begin
        self._last_is_corrupt = False

    @property
    def own(self) -> tuple[Path, Path]:
        """What the run goes on from: the last, or the one before it."""
        return self.last, self.previous

    def newest(self) -> Path | None:
        """The newest whole checkpoint of the two; None if there is neither.

        Warns:
            UserWarning: if the last is not whole, or not there: with its name, what is wrong, and the name of the one
                used instead.

        Raises:
            CorruptCheckpoint: if there are checkpoints and none is whole.
        """
        if not any(path.exists() for path in self.own):
            return None
        wrong: list[str] = []
        for path in self.own:
            found = problems(path)
            if not found:
                self._whole.add(path)
                if wrong:
                    warnings.warn(f"{'; '.join(wrong)}. The run goes on from {path}", stacklevel=2)
                return path
            self._last_is_corrupt |= path == self.last
            wrong.append(f"the checkpoint {path} is corrupt: {', '.join(found)}")
        raise CorruptCheckpoint(f"{'; '.join(wrong)}. There is none to go on from: remove them to begin anew")

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write it atomically; all processes call if the state is spread over them.

        Raises:
            CheckpointNotSaved: naming what the run can still go on from.
        """
        path = Path(path)
        rotate = path == self.last and not self._last_is_corrupt
        sharded = bool((storage_options or {}).get("sharded"))
        try:
            write_checkpoint(checkpoint, path, before=self.previous if rotate else None, sharded=sharded)
        except OSError as error:
            raise CheckpointNotSaved(f"the checkpoint {path} could not be saved: {error}; {self._left()}") from error
        self._last_is_corrupt &= path != self.last

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read it onto the host, its tensors whole; nothing in it is unpickled, whatever ``weights_only`` says.

        Raises:
            CorruptCheckpoint: if it is not whole.
        """
        path = Path(path)
        state = read_checkpoint(path, verify=not self.is_verified(path))
        if "optimizer_states" in state:
            state["optimizer_states"] = [numbered_state(each) for each in state["optimizer_states"]]
        return state

    def is_verified(self, path: str | Path) -> bool:
        """Whether :meth:`newest` has held it against its checksums."""
        return Path(path) in self._whole

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete it."""
        remove(Path(path))

    def _left(self) -> str:
        there = next((path for path in self.own if path.exists()), None)
        return "there is none before it" if there is None else f"{there} is as it was, and the run can go on from it"
