"""What processes do in the tests of watching one another."""

from __future__ import annotations

import os
import signal
import time

import torch
import torch.distributed as dist

from toolkit.parallel.failure import PeerWatch, RankFailure


def watched(kind: str) -> list[object]:
    """Add up a number while rank 1 does ``kind``; what rank 0 is told, and after how many seconds."""
    watch, start, rank = PeerWatch(beat=0.05, patience=1.0, timeout=2.0), time.monotonic(), dist.get_rank()
    watch.start()
    try:
        with watch.naming():
            _act(kind, rank)
    except RankFailure as failure:
        said = str(failure)
    except ValueError as error:
        said = f"own error: {error}"
    else:
        said = ""
    return [said, time.monotonic() - start]


def _act(kind: str, rank: int) -> None:
    if kind == "raises" and rank == 1:
        raise ValueError("the disk is full")
    if kind == "raises":
        time.sleep(0.5)
        raise RuntimeError("[gloo] Connection closed by peer")  # as a collective would, if rank 1's process were gone
    if kind == "slow" and rank == 1:
        time.sleep(4.0)  # busy, but alive: its beat goes on
    dist.all_reduce(torch.ones(1))


def frozen() -> str:
    """Rank 1 stops for good without its connections being closed; rank 0's own thread must end it."""
    watch = PeerWatch(beat=0.05, patience=0.5, timeout=1.0)
    watch.start()
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    with watch.naming():
        dist.all_reduce(torch.ones(1))
    return ""
