"""Shows how far a sweep is: live bars in a terminal, a line for each finished run elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from toolkit.parallel import is_main_process
from toolkit.scaling.plan import PlannedRun
from toolkit.scaling.results import RunResult


class SweepProgress:
    """The run's number of how many, what each run at work is doing, and the time left.

    Args:
        runs: all that was planned.
        todo: those not finished yet.
        seconds: isolated seconds of one step, by run name: the first estimate of the time left, which
            is then scaled by what finished runs really took.
        workers: runs at once.
    """

    def __init__(
        self, runs: Sequence[PlannedRun], todo: Sequence[PlannedRun], seconds: dict[str, float], workers: int
    ) -> None:
        self._total, self._done = len(runs), len(runs) - len(todo)
        self._left = {run.name: run.training.steps * seconds[run.name] for run in todo}
        self._workers, self._started, self._expected = max(workers, 1), time.monotonic(), 0.0
        self._console = Console(quiet=not is_main_process())
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._sweep = self._bars.add_task("runs", total=self._total, completed=self._done, left=self._time_left())

    def __enter__(self) -> SweepProgress:
        if self._done:
            self._console.print(f"{self._done} of {self._total} runs are finished already and are not run again")
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def reporter(self, name: str) -> Callable[[int, int], None]:
        """A function that takes (step, steps) of the run ``name``."""
        return lambda step, steps: self.update(name, step, steps)

    def update(self, name: str, step: int, steps: int) -> None:
        """The run ``name`` has done ``step`` of ``steps``."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(f"  {name}", total=steps, left="")
        self._bars.update(self._tasks[name], completed=step)

    def finished(self, run: PlannedRun, row: RunResult) -> None:
        """The run ended with this row."""
        self._done += 1
        self._expected += self._left.pop(run.name)
        if run.name in self._tasks:
            self._bars.remove_task(self._tasks.pop(run.name))
        left = self._time_left()
        self._bars.update(self._sweep, completed=self._done, left=left)
        self._console.print(
            f"[{self._done}/{self._total}] {run.name}: {row.bits_per_byte:.3f} bits per byte, "
            f"{row.flops_spent / run.budget:.4f} of its budget, {row.seconds_wall:.0f} s; {left}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def _time_left(self) -> str:
        """What is left at the pace of what is done; at first, as if each of the workers ran at its isolated one."""
        pace = (time.monotonic() - self._started) / self._expected if self._expected else 1 / self._workers
        return f"about {_clock(pace * sum(self._left.values()))} left"


def _clock(seconds: float) -> str:
    """200 as 3:20."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
