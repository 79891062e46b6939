"""What the benchmarks share: contenders that take turns, the ratio of each round, the memory of a process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def in_turns(runs: list[Callable[[], Any]], rounds: int, device: str = "cpu") -> list[list[float]]:
    """Seconds of each run in each round, after one round to warm up."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds + 1):
        for run, taken in zip(runs, times, strict=True):
            seconds = _seconds(run, device)
            if turn:
                taken.append(seconds)
    return times


def _seconds(run: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(mine: list[float], theirs: list[float], share: float = 1.0, digits: int = 2) -> str:
    """Median and quartiles of the paired ratios."""
    low, middle, high = statistics.quantiles([x / (y * share) for x, y in zip(mine, theirs, strict=True)], n=4)
    return f"{middle:{digits + 4}.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def milliseconds(times: list[float]) -> str:
    """The median."""
    return f"{1e3 * statistics.median(times):.1f}"


def against(mine: list[float], theirs: list[float]) -> str:
    """Their ratio and both medians."""
    return f"{ratio(mine, theirs)}   {milliseconds(mine)} / {milliseconds(theirs)} ms"


def resident(entry: str) -> int:
    """Bytes of this process in memory: now (``VmRSS``) or at most so far (``VmHWM``). Linux only.

    Not ``resource.getrusage``, whose peak a child inherits from the process that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))
