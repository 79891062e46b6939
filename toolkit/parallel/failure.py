"""Which process of a run is gone, said by those that are left.

When a process dies, others find their connection to it closed, or wait: neither names a rank. So each has a thread that
writes a beat to the run's key-value store and watches the next rank's. A process whose communication fails asks whose
beat has stopped; one that waits in vain is ended by its own thread. A process that is stopped keeps its connections,
and the one that keeps the store answers nobody then: a second thread ends who waits for the store.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from toolkit.checks import require_positive

COMMUNICATION = ("gloo", "nccl", "connection", "timed out", "timeout", "store")
"""Words, one of which is in the message of an error of communication."""
DEAD = "dead"
"""The key under which the first death that was found is written."""


LEFT = "left"
"""The last beat of a process that has done its work."""
FROZEN = "the run's key-value store does not answer, and with it the process that keeps it: rank 0, or the launcher"
GONE = "the run's key-value store is gone, and with it the process that kept it: rank 0, or the launcher"


class RankFailure(RuntimeError):
    """Another process of the run is gone; the message has its rank."""


class Waiting:
    """Counts seconds of waiting, but not those in which this process was stopped, or had no processor, itself.

    A job that is suspended as a whole and goes on must not find everyone dead.

    Args:
        most: seconds between two looks beyond which it was.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self.begin()

    def begin(self) -> None:
        """From 0."""
        self._seconds, self._looked = 0.0, time.monotonic()

    def seconds(self) -> float:
        """Look."""
        now = time.monotonic()
        self._seconds += min(now - self._looked, self.most)
        self._looked = now
        return self._seconds


class PeerWatch:
    """Watches that the processes of the default group are alive; of one process, nothing.

    Args:
        beat: seconds between two beats.
        patience: seconds without a beat after which a process is dead, once communication has failed.
        timeout: seconds without a beat after which a process is dead where nothing has failed yet, which may be because
            everyone waits for it. Others then end, after twice ``patience`` more, with exit code 1. Time in which a
            process was stopped itself does not count.

    Raises:
        ValueError: if one is not positive.
    """

    def __init__(self, beat: float = 0.5, patience: float = 5.0, timeout: float = 60.0) -> None:
        require_positive(beat=beat, patience=patience, timeout=timeout)
        self.beat, self.patience, self.timeout = beat, patience, timeout
        self._stop, self._left = threading.Event(), threading.Event()
        self._answers = 0  # of the store to the thread
        self._store: dist.Store | None = None
        self._heard = ""  # what the thread has read of the dead, which outlives the store
        self.rank, self.world_size = 0, 1

    def start(self) -> None:
        """Begin; a collective call."""
        if self._store is not None or not dist.is_initialized() or dist.get_world_size() == 1:
            return
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        store = self._store = self._own_store()
        store.set(self._key(self.rank), "0")
        dist.barrier()
        self._stop.clear()
        self._left.clear()
        # A store's connection is for one thread at a time.
        self._thread = threading.Thread(target=self._watch, args=(self._own_store(),), daemon=True, name="peer-watch")
        self._thread.start()
        threading.Thread(target=self._watch_store, daemon=True, name="store-watch").start()

    def stop(self) -> None:
        """End well: the others do not miss this process's beat."""
        self._stop.set()
        if self._store is not None:
            self._thread.join()  # so that no beat follows
            with suppress(RuntimeError):  # the store may be gone already
                self._store.set(self._key(self.rank), LEFT)
        self._store = None
        self._left.set()

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Turn an error of communication within into one that names the rank that is gone, if one is.

        Another error is left as it is, and told to the processes that will miss this one.

        Raises:
            RankFailure: naming the rank, and what it met if it could say.
        """
        try:
            yield
            self.stop()
        except Exception as error:
            if self._store is None:
                raise
            if not _is_communication(error):
                self._tell(f"rank {self.rank} is gone, after {type(error).__name__}: {error}")
                self._linger()
                raise
            if words := self.dead():
                self._linger()
                raise RankFailure(f"{words}, so rank {self.rank} stops") from error
            raise
        finally:
            self._stop.set()
            self._left.set()
            self._store = None

    def dead(self) -> str:
        """Who is gone, as words; "" if after ``patience`` seconds every process is found alive."""
        store = self._store
        if store is None:
            return ""
        try:
            return self._heard or self._told(store) or self._missing(store)
        except RuntimeError:
            return self._heard or GONE

    def _linger(self) -> None:
        """Leave the others' threads time to read: the store goes with the process that keeps it."""
        time.sleep(4 * self.beat)

    def _missing(self, store: dist.Store) -> str:
        start, before = time.monotonic(), self._beats(store)
        alive = {self.rank}
        while time.monotonic() - start < self.patience and len(alive) < self.world_size:
            time.sleep(self.beat)
            now = self._beats(store)
            alive |= {rank for rank, beats in now.items() if beats != before[rank] or beats == LEFT.encode()}
            if told := self._told(store):
                return told
        if silent := sorted(before.keys() - alive):
            self._tell(_silence(silent, time.monotonic() - start))
        return self._told(store)

    def _watch(self, store: dist.Store) -> None:
        """The thread: beat, look at the next rank, and end the process if it does not end by itself."""
        count, seen, waiting = 0, b"", Waiting(4 * self.beat)
        following = (self.rank + 1) % self.world_size
        while not self._stop.wait(self.beat):
            try:
                count += 1
                store.set(self._key(self.rank), str(count))
                now = store.get(self._key(following))
                words = self._heard = self._told(store)
                if now != seen or now == LEFT.encode():
                    seen = now
                    waiting.begin()
                if not words and waiting.seconds() > self.timeout:
                    store.compare_set(self._name(DEAD), "", _silence([following], self.timeout))
                    words = self._heard = self._told(store)
                self._answers += 1
            except RuntimeError:
                words = self._heard or GONE
            if words and self._stop.wait(2 * self.patience):
                return
            if words:
                self._end(words)

    def _watch_store(self) -> None:
        """The other thread: end the process if the first, or the one that stops it, gets no answer from the store."""
        answers, waiting = -1, Waiting(4 * self.beat)
        while not self._left.wait(self.beat):
            if answers != self._answers:
                answers = self._answers
                waiting.begin()
            if waiting.seconds() > self.timeout + 4 * self.patience:
                self._end(self._heard or FROZEN)

    def _end(self, words: str) -> None:
        print(f"{words}, so rank {self.rank}, which waits for it, ends", file=sys.stderr, flush=True)
        os._exit(1)

    def _told(self, store: dist.Store) -> str:
        key = self._name(DEAD)
        return str(store.get(key).decode()) if store.check([key]) else ""

    def _tell(self, words: str) -> None:
        """Write down who is gone, unless somebody has."""
        with suppress(RuntimeError):  # if the store went first, the others see it for themselves
            if self._store is not None:
                self._store.compare_set(self._name(DEAD), "", words)

    def _beats(self, store: dist.Store) -> dict[int, bytes]:
        return {rank: store.get(self._key(rank)) for rank in range(self.world_size)}

    @staticmethod
    def _own_store() -> dist.Store:
        return _get_default_store().clone()  # type: ignore[attr-defined]

    def _key(self, rank: int) -> str:
        return self._name(f"beat/{rank}")

    @staticmethod
    def _name(key: str) -> str:
        return f"peer_watch/{key}"


def _silence(ranks: list[int], seconds: float) -> str:
    names = f"rank {ranks[0]} is" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} are"
    return f"{names} gone, without a sign for {seconds:.0f} s"


def _is_communication(error: Exception) -> bool:
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in COMMUNICATION)
