"""What processes do in the tests of watching one another."""

from __future__ import annotations

import os
import signal
import subprocess
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


def frozen(rank: int) -> str:
    """One stops for good without its connections being closed; the other's own threads must end it."""
    _meet_as_a_launcher_s()
    watch = PeerWatch(beat=0.05, patience=0.5, timeout=1.0)
    watch.start()
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    with watch.naming():
        dist.all_reduce(torch.ones(1))
    return ""


def suspended() -> str:
    """Both are stopped for longer than any patience, as a scheduler does with a whole job, and go on."""
    _meet_as_a_launcher_s()
    watch = PeerWatch(beat=0.05, patience=0.5, timeout=1.0)
    pids = [torch.tensor(0), torch.tensor(0)]
    dist.all_gather(pids, torch.tensor(os.getpid()))
    watch.start()
    if dist.get_rank() == 0:
        names = " ".join(str(int(pid)) for pid in pids)
        subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -STOP {names}; sleep 4; kill -CONT {names}"])
    with watch.naming():
        for _ in range(20):  # one second, and what they are stopped
            time.sleep(0.05)
            dist.all_reduce(torch.ones(1))
    return ""


def _meet_as_a_launcher_s() -> None:
    """Processes of a launcher meet at a port of rank 0's, whose store stops with it; these met at a file."""
    rank, host = dist.get_rank(), "127.0.0.1"
    store = dist.TCPStore(host, 0, 2, True, wait_for_workers=False) if rank == 0 else None
    port = torch.tensor(0 if store is None else store.port)
    dist.broadcast(port, 0)
    store = dist.TCPStore(host, int(port), 2, False, wait_for_workers=False) if store is None else store
    dist.destroy_process_group()
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
