"""A run that is asked to end: it saves, and leaves with a code that says it is to be started again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint

from toolkit.training.exact_resume import step_is_done

START_AGAIN = 75
"""The exit code: EX_TEMPFAIL of sysexits.h, "try again later"; no signal's (128 + n) and no plain failure's."""


class Interrupted(SystemExit):
    """A run that ended early on SIGTERM, its state saved; as a ``SystemExit`` it ends the process with the code."""

    def __init__(self, checkpoint: Path, step: int) -> None:
        super().__init__(START_AGAIN)
        self.checkpoint, self.step = checkpoint, step

    def __reduce__(self) -> tuple[Any, ...]:
        """For a worker's parent: an exception is otherwise made again from the text, or the code, that it has."""
        return Interrupted, (self.checkpoint, self.step)

    def __str__(self) -> str:
        return f"interrupted after step {self.step}, which {self.checkpoint} holds; start it again to go on"


class SaveOnTerm(Checkpoint):
    """On SIGTERM in any process, saves after the step that is under way, and raises :class:`Interrupted` in all.

    It listens within its ``with`` block: what is asked while a run is being set up is done after its first step. A run
    that has done its last step ends as it would have. Processes agree once a step by the sum of one number, so that it
    is enough to signal one of them; a validation that is under way is finished first. Lightning's own handler, which
    communicates from within the signal handler, is replaced while the run trains. As a ``Checkpoint`` it comes after
    the callbacks that count.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._asked = False
        self._before: Callable[..., Any] | int | None = None

    def __enter__(self) -> SaveOnTerm:
        """Listen."""
        self._before = self._listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Give the signal back."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Take the signal from Lightning, which has just taken it; at the end it gives back what it found."""
        self._listen()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and end, if a process was asked to.

        Raises:
            Interrupted: in every process.
        """
        if step_is_done(trainer, batch_idx) and self._anyone_asked(trainer.strategy.root_device):
            trainer.save_checkpoint(self.path)
            raise Interrupted(self.path, trainer.global_step)

    def _listen(self) -> Callable[..., Any] | int | None:
        """Who listened so far; None where that cannot be changed: signals can be handled in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            return None
        return signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: Any) -> None:
        self._asked = True

    def _anyone_asked(self, device: torch.device) -> bool:
        if not dist.is_initialized():
            return self._asked
        asked = torch.tensor(float(self._asked), device=device)
        dist.all_reduce(asked)
        return asked.item() > 0
