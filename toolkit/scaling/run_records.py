"""What a finished run wrote down, read back without TensorBoard: losses by FLOPs, balance over the schedule."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from toolkit.checks import require
from toolkit.scaling.results import RunResult

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LossCurve:
    """The losses of one run as it spent its budget.

    Attributes:
        run, family, budget: of the run's row.
        flops, train_loss: (records,), ``exact`` FLOPs spent and nats per token of that step's batch.
        validated_at, bits_per_byte: (validations,), FLOPs spent and the validation loss.
    """

    run: str
    family: str
    budget: float
    flops: Floats
    train_loss: Floats
    validated_at: Floats
    bits_per_byte: Floats


@dataclass(frozen=True)
class BalanceCurve:
    """How evenly one run's experts were loaded, mean over layers.

    Attributes:
        run, family: of the run's row.
        share: (records,), of the schedule, 0 to 1.
        max_violation: (records,), the busiest expert's load over the mean load, less 1, of one batch.
        load_entropy: (records,), entropy of the loads over its maximum, the logarithm of the experts: 1 is even.
    """

    run: str
    family: str
    share: Floats
    max_violation: Floats
    load_entropy: Floats


def loss_curve(folder: Path, row: RunResult) -> LossCurve:
    """Read ``metrics.jsonl`` of the run in ``folder``.

    Raises:
        FileNotFoundError: there is none.
    """
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    def column(tag: str) -> tuple[Floats, Floats]:
        found = [(record["flops"], record[tag]) for record in records if tag in record]
        flops, values = np.array(found, dtype=np.float64).reshape(-1, 2).T
        return flops, values

    return LossCurve(row.run, row.family, row.budget, *column("train/loss"), *column("validation/bits_per_byte"))


def expert_loads(folder: Path) -> tuple[Floats, dict[str, Floats]]:
    """Steps (records,) and each layer's shares (records, experts) of the run in ``folder``; none without MoE."""
    path = folder / "load.npz"
    if not path.exists():
        return np.empty(0), {}
    with np.load(path) as saved:
        return saved["steps"].astype(np.float64), {name: saved[name] for name in saved.files if name != "steps"}


def balance_curve(folder: Path, row: RunResult) -> BalanceCurve | None:
    """How evenly the run in ``folder`` loaded its experts, from its ``load.npz``; None where it has no router.

    Raises:
        ValueError: a layer's loads are not of every record or do not sum to 1.
    """
    steps, loads = expert_loads(folder)
    if not loads:
        return None
    for name, shares in loads.items():
        sound = len(shares) == len(steps) and np.allclose(shares.sum(1), 1, atol=1e-3)
        require(sound, f"{name} of {folder}/load.npz", shares, f"{len(steps)} records of shares that sum to 1")
    return BalanceCurve(
        row.run,
        row.family,
        steps / row.steps,
        np.mean([shares.shape[1] * shares.max(1) - 1 for shares in loads.values()], axis=0),
        np.mean([_entropy_share(shares) for shares in loads.values()], axis=0),
    )


def _entropy_share(shares: Floats) -> Floats:
    """shares (records, experts) -> (records,): entropy over log experts."""
    logs = np.log(np.where(shares > 0, shares, 1.0))
    entropy: Floats = -(shares * logs).sum(1) / np.log(shares.shape[1])
    return entropy
