"""Groups of gloo's processes, each of which does the work of some rows of a table."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import get_context

Work = tuple[int, Callable[..., Any], tuple[Any, ...]]
"""How many processes do it, what each calls, and with which arguments."""


def run_processes(rows: Mapping[str, Work]) -> dict[str, list[Any]]:
    """By row, what each of its processes gave; rows of as many processes share them; one has no group."""
    found: dict[str, list[Any]] = {}
    for processes in sorted({count for count, *_ in rows.values()}):
        those = {name: work for name, (count, *work) in rows.items() if count == processes}
        with tempfile.TemporaryDirectory() as folder, get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
            arguments = [(rank, processes, folder, list(those.values())) for rank in range(processes)]
            each = pool.starmap(_process, arguments, chunksize=1)
        found |= {name: [given[place] for given in each] for place, name in enumerate(those)}
    return found


def _process(rank: int, processes: int, folder: str, works: list[Any]) -> list[Any]:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes))
    if processes == 1:
        return [work(*arguments) for work, arguments in works]
    meeting = f"file://{Path(folder) / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    try:
        return [work(*arguments) for work, arguments in works]
    finally:
        dist.destroy_process_group()
