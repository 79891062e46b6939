"""Counting a forward once, though activation checkpointing runs it twice."""

from __future__ import annotations

import torch
from torch import Tensor


def recomputing() -> bool:
    """True in a forward that runs inside a backward pass, as both kinds of ``torch.utils.checkpoint`` rerun theirs.

    What counts tokens must not count those again (torchtitan's first loss-free bias did, and halved the sum). Counts
    are kept apart by this and not by the grad mode: the reentrant kind runs its first forward without gradients.
    False while compiling, when nobody knows yet; :func:`add_once` asks when the compiled code runs.
    """
    if torch.compiler.is_compiling():
        return False
    return _in_backward()


def add_once(total: Tensor, amount: Tensor) -> None:
    """total += amount, both of one shape, unless this forward is a rerun; right in compiled code too."""
    if torch.compiler.is_compiling():
        _add_once(total, amount)
    elif not _in_backward():
        total.add_(amount)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


@torch.library.custom_op("toolkit::add_once", mutates_args={"total"})
def _add_once(total: Tensor, amount: Tensor) -> None:
    """An operator that the compiler does not look into, so that the question is asked when it runs."""
    if not _in_backward():
        total.add_(amount)
