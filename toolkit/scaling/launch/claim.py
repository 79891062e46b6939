"""Claims: which process, on which machine, is at work on a run, so that no run is trained twice at once."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from toolkit.checks import require
from toolkit.files import write_atomically
from toolkit.scaling.locks import locked

HEARTBEAT_SECONDS = 20.0
"""Between two signs of life of a claim's owner."""

STALE_SECONDS = 300.0
"""Without a sign of life after which an owner on another machine counts as dead."""


class ClaimLostError(RuntimeError):
    """A run was taken over by another process: this one showed no sign of life for too long, and must not go on."""


@dataclass(frozen=True)
class Owner:
    """Who has claimed a run.

    Attributes:
        host: the machine's name.
        system: tells apart what process numbers belong to: this start of the machine, this container.
        pid: of the process, with ``born``, its start in clock ticks, since numbers are used again; empty where the
            system does not tell.
        since: seconds since 1970, by the owner's clock: for people to read.
        token: this claim, unlike any other.
    """

    host: str
    system: str
    pid: int
    born: str
    since: float
    token: str

    @classmethod
    def here(cls) -> Owner:
        """A new claim of this process."""
        pid = os.getpid()
        return cls(platform.node(), _system(), pid, _born(pid), time.time(), uuid.uuid4().hex)

    @property
    def there(self) -> bool | None:
        """Whether its process is there, at work or stopped; None where that cannot be told, as of another machine's."""
        here = (self.host, self.system) == (platform.node(), _system())
        return _born(self.pid) == self.born if here and self.born else None


@dataclass(frozen=True)
class RunClaims:
    """The claims of a study's runs: a file each, there while its owner is at work.

    Claims are taken, judged and released in turn, under a lock on one file beside them. An owner's sign of life is its
    file's time of modification, compared with the file system's own clock, so that machines' clocks may differ.

    Attributes:
        folder: of the files; made by the first claim.
        heartbeat, stale: seconds between signs of life, and without one after which a claim is dead.

    Raises:
        ValueError: if ``stale`` leaves no room for a few signs of life.
    """

    folder: Path
    heartbeat: float = HEARTBEAT_SECONDS
    stale: float = STALE_SECONDS

    def __post_init__(self) -> None:
        require(self.stale >= 3 * self.heartbeat > 0, "stale", self.stale, f"3 heartbeats={self.heartbeat} or more")

    def owner(self, run: str) -> Owner | None:
        """Who is at work on ``run``; None if nobody is, or an owner that is dead."""
        path = self._path(run)
        with suppress(FileNotFoundError):  # it may be released at any moment
            owner = Owner(**json.loads(path.read_text()))
            alive = owner.there
            if alive is None:
                alive = self._now() - path.stat().st_mtime <= self.stale
            if alive:
                return owner
        return None

    @contextmanager
    def hold(self, run: str) -> Iterator[RunClaim | None]:
        """Claim ``run`` for this process meanwhile; None, and nothing is claimed, if another is at work on it.

        The claim of a dead owner is taken over: one whose process on this machine is gone, or that on another has shown
        no sign of life for ``stale`` seconds. A process here that is stopped keeps its claim: it has its run's folder
        locked, and may be continued.
        """
        claim = self._take(run)
        if claim is None:
            yield None
            return
        with claim.alive(self.heartbeat):
            yield claim

    def _take(self, run: str) -> RunClaim | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._turn():
            if self.owner(run) is not None:
                return None
            owner = Owner.here()
            write_atomically(self._path(run), json.dumps(asdict(owner)) + "\n")
        return RunClaim(self._path(run), owner, self._turn)

    def _turn(self) -> AbstractContextManager[int]:
        return locked(self._lock, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)

    def _now(self) -> float:
        """The file system's clock."""
        with self._lock.open("a"):
            os.utime(self._lock)
        return self._lock.stat().st_mtime

    @property
    def _lock(self) -> Path:
        return self.folder / ".lock"

    def _path(self, run: str) -> Path:
        return self.folder / f"{run}.json"


@dataclass(frozen=True)
class RunClaim:
    """A run claimed by this process.

    Attributes:
        path: the claim's file.
        owner: this process.
        turn: gives the lock under which claims change.
    """

    path: Path
    owner: Owner
    turn: Callable[[], AbstractContextManager[int]]
    _lost: threading.Event = field(default_factory=threading.Event, repr=False)

    def require(self) -> None:
        """See that the run is still this process's, which may have been stopped for long just before.

        Raises:
            ClaimLostError: if another has taken it over.
        """
        with suppress(OSError):  # a file server may be away for a while
            if not self._mine():
                self._lost.set()
        if self._lost.is_set():
            raise ClaimLostError(f"{self.path.stem} was taken over by another process; this one does not go on with it")

    def watched(self, report: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
        """A run's ``report``, which ends the training whose claim was lost."""

        def told(step: int, steps: int) -> None:
            self.require()
            if report is not None:
                report(step, steps)

        return told

    @contextmanager
    def alive(self, heartbeat: float) -> Iterator[None]:
        """Show signs of life every ``heartbeat`` seconds; then release the claim, whatever happened meanwhile."""
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(heartbeat, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with self.turn():
                if self._mine():
                    self.path.unlink()

    def _beat(self, heartbeat: float, stop: threading.Event) -> None:
        while not stop.wait(heartbeat):
            with suppress(OSError), self.turn():  # a file server may be away for a while
                if not self._mine():
                    self._lost.set()
                    return
                os.utime(self.path)

    def _mine(self) -> bool:
        try:
            return bool(json.loads(self.path.read_text())["token"] == self.owner.token)
        except FileNotFoundError:
            return False


def _system() -> str:
    """What process numbers belong to here: this start of the system, and its process namespace; Linux only."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115  # no path, but a name
    return ""


def _born(pid: int) -> str:
    """When a process started, in clock ticks; empty for one that has ended, or where the system does not tell."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if state in "ZX" else rest[18]  # proc(5): the 22nd field, of which two stand before the state
