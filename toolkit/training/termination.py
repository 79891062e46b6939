"""SIGTERM as a note that is read where a process can end well, and the exit code of one that did."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

START_AGAIN = 75
"""The exit code: EX_TEMPFAIL of sysexits.h, "try again later"; no signal's (128 + n) and no plain failure's."""


class AskedToEnd(SystemExit):
    """What was to be done ended early on SIGTERM, and the same command goes on with it.

    As a ``SystemExit`` it ends the process with the code.

    Args:
        words: what is left behind, for people.
    """

    def __init__(self, words: str) -> None:
        super().__init__(START_AGAIN)
        self.words = words

    def __reduce__(self) -> tuple[Any, ...]:
        """For a worker's parent: an exception is otherwise made again from the code that it has."""
        return AskedToEnd, (self.words,)

    def __str__(self) -> str:
        return self.words


class TermNote:
    """Notes SIGTERM within its ``with`` block, instead of ending the process.

    Notes stand in one another, as a run stands in a sweep: what was noted outside when a block begins counts inside,
    and what was noted inside counts outside when it ends. Another handler that was there before is called at the end
    for a signal that changed nothing: the block came to its own end. Where there was none, as in a process that does
    only what the block does, that end is all that was asked for.

    Signals can be handled in the main thread only; in another a block notes nothing.

    Attributes:
        asked: whether there was one.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Callable[..., Any] | int | None = None

    def __enter__(self) -> TermNote:
        self._before = self.listen()
        outer = self._outer
        if outer is not None and outer.asked:
            self.asked = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._before is None:
            return
        signal.signal(signal.SIGTERM, self._before)
        if not self.asked:
            return
        if self._outer is not None:
            self._outer.asked = True
        elif kind is None and callable(self._before):
            signal.raise_signal(signal.SIGTERM)

    def listen(self) -> Callable[..., Any] | int | None:
        """Take the signal, from whoever has taken it since the block began too; who had it, None where nobody can."""
        if threading.current_thread() is not threading.main_thread():
            return None
        return signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: Any) -> None:
        self.asked = True

    @property
    def _outer(self) -> TermNote | None:
        owner = getattr(self._before, "__self__", None)
        return owner if isinstance(owner, TermNote) else None


def any_process(asked: bool, device: torch.device) -> bool:
    """Whether one of the default group's processes was asked, the same in all; a collective call.

    Args:
        asked: whether this one was.
        device: that the group communicates from.
    """
    if not dist.is_initialized():
        return asked
    total = torch.tensor(float(asked), device=device)
    dist.all_reduce(total)
    return total.item() > 0


@contextmanager
def ending_on_term() -> Iterator[None]:
    """Within it SIGTERM raises :class:`AskedToEnd` where no :class:`TermNote` takes it, for a command to repeat."""
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(*_: Any) -> None:
    raise AskedToEnd("asked to end; the same command goes on")
