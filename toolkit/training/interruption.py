"""A run that is asked to end: it saves, and leaves with a code that says it is to be started again."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint

from toolkit.training.exact_resume import step_is_done
from toolkit.training.termination import AskedToEnd, TermNote, any_process


class Interrupted(AskedToEnd):
    """A run that ended early on SIGTERM, its state saved; as a ``SystemExit`` it ends the process with code 75."""

    def __init__(self, checkpoint: Path, step: int) -> None:
        super().__init__(f"interrupted after step {step}, which {checkpoint} holds; start it again to go on")
        self.checkpoint, self.step = checkpoint, step

    def __reduce__(self) -> tuple[Any, ...]:
        """For a worker's parent: an exception is otherwise made again from the text, or the code, that it has."""
        return Interrupted, (self.checkpoint, self.step)


class SaveOnTerm(Checkpoint):
    """On SIGTERM in any process, saves after the step that is under way, and raises :class:`Interrupted` in all.

    It listens within its ``with`` block: what is asked while a run is being set up is done after its first step. A run
    that has done its last step ends as it would have, and leaves the signal to who listened before it (a sweep ends
    then). Processes agree once a step by the sum of one number, so that it
    is enough to signal one of them; a validation that is under way is finished first. Lightning's own handler, which
    communicates from within the signal handler, is replaced while the run trains. As a ``Checkpoint`` it comes after
    the callbacks that count.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._term = TermNote()

    def __enter__(self) -> SaveOnTerm:
        """Listen."""
        self._term.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Give the signal back."""
        self._term.__exit__(kind, error, at)

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Take the signal from Lightning, which has just taken it; at the end it gives back what it found."""
        self._term.listen()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and end, if a process was asked to.

        Raises:
            Interrupted: in every process.
        """
        if step_is_done(trainer, batch_idx) and any_process(self._term.asked, trainer.strategy.root_device):
            trainer.save_checkpoint(self.path)
            raise Interrupted(self.path, trainer.global_step)
