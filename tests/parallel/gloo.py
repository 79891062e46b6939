"""Runs a function in several processes that talk through gloo, and gives back what each returned.

Processes are forked from a server that has imported torch already, so that a group stands in a fraction of a second.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

HERE = str(Path(__file__).parent)
PRELOADED = ["torch", "torch.distributed.tensor", "toolkit.models"]
TIMEOUT = 120.0

Result = TypeVar("Result")


def run_processes(
    world_size: int, work: Callable[..., Result], *arguments: Any, timeout: float = TIMEOUT
) -> list[Result]:
    """``work(*arguments)`` in each of ``world_size`` processes of one gloo group; what it returned, by rank.

    ``work`` is a function of a module that the processes can import; it, its arguments and what it returns are pickled
    too: tensors are better returned as plain values or numpy arrays.

    Raises:
        AssertionError: with every failed rank's traceback, or if the processes take longer than ``timeout`` seconds.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        results = context.Queue()
        started = [
            context.Process(target=_process, args=(rank, world_size, folder, results, work, arguments), daemon=True)
            for rank in range(world_size)
        ]
        for process in started:
            process.start()
        found, failed = _collected(results, started, timeout)
        for process in started:
            process.join(5 if not failed else 0.1)
            process.kill()
    assert not failed, "\n".join(failed)
    return [found[rank] for rank in range(world_size)]


def _collected(results: Any, started: list[Any], timeout: float) -> tuple[dict[int, Any], list[str]]:
    found: dict[int, Any] = {}
    failed: list[str] = []
    end = time.monotonic() + timeout
    while len(found) + len(failed) < len(started):
        try:
            rank, value, problem = results.get(timeout=0.2)
        except Exception:
            dead = [rank for rank, each in enumerate(started) if not each.is_alive() and rank not in found]
            if dead and results.empty() and not failed:
                failed.append(f"ranks {dead} ended without a word")
            if time.monotonic() > end:
                failed.append(
                    f"no answer within {timeout:g} s from ranks {sorted(set(range(len(started))) - set(found))}"
                )
            if failed:
                break
            continue
        if problem:
            failed.append(f"rank {rank}:\n{problem}")
            end = min(end, time.monotonic() + 2)  # the others may wait for it in vain
        else:
            found[rank] = value
    return found, failed


def _process(
    rank: int, world_size: int, folder: str, results: Any, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    sys.path.insert(0, HERE)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meeting",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        value = work(*arguments)
        dist.barrier()
        results.put((rank, value, ""))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
