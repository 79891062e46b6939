"""One finished run of a study: the row every table, figure and claim is made from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunResult:
    """What one run planned, spent and reached.

    FLOPs are training FLOPs of the whole run (forward and backward). ``seconds`` is the time the
    run's steps take when nothing else runs beside it (steps x the isolated time of one step), the
    figure that claims at equal seconds rest on; ``seconds_wall`` is what it took in the sweep.
    """

    run: str  # unique name, e.g. "moe-dim32-flops3e11-seed0"
    family: str  # e.g. "dense", "moe", "moe+window"
    budget: float  # FLOPs, `exact` convention
    dim: int  # model width, the size axis of the grid
    seed: int
    parameters: int  # every parameter
    active_parameters: int  # those that one token uses
    steps: int
    tokens: int
    epochs: float  # tokens / unique training tokens
    flops_planned: float  # `exact`: visible pairs only, router counted
    flops_spent: float  # the same, counted as the run went
    flops_palm: float
    flops_hardware: float
    learning_rate: float
    bits_per_byte: float  # validation, the same windows for every run
    train_loss: float  # nats per token, mean of the last tenth of the steps
    seconds: float
    seconds_wall: float
    dropped_share: float  # of (token, expert) assignments; 0 where dropless or dense
    max_violation: float  # mean over layers at the end; nan for a dense model
    token_entropy: float  # nats, mean over layers at the end; nan for a dense model
