"""What memory goes to, and whether tokens or parameters are too few."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from training_cases import MODEL, training

from toolkit.compute import cost, memory
from toolkit.parallel import ParallelConfig
from toolkit.training.check import check_memory, check_tokens


def test_memory_says_what_dominates_and_whether_it_fits() -> None:
    config = training(batch_size=64)
    kept = memory(MODEL, 64, 32)
    found = [check_memory(MODEL, config, kept.training / share) for share in (0.5, 0.95, 1.5)]
    assert [each.status for each in found] == ["pass", "warn", "fail"]
    assert "activations dominate" in found[0].figure
    halves = check_memory(MODEL, config, kept.training / 0.95, ParallelConfig(data=2, accelerator="cpu"))
    assert halves.status == "pass"
    assert "optimizer dominate" in check_memory(MODEL, training(batch_size=1, context=1), 1e9).figure


@pytest.mark.parametrize(("per_parameter", "status", "word"), [
    (2, "warn", "undertrained"), (20, "pass", "near"), (60, "pass", "near"), (500, "warn", "capacity-limited"),
])  # fmt: skip
def test_tokens_for_each_active_parameter(per_parameter: int, status: str, word: str) -> None:
    active = cost(MODEL, 32).total_active_parameters
    found = check_tokens(MODEL, training(steps=round(per_parameter * active / (4 * 32))))
    assert found.status == status
    assert word in found.figure
    assert check_tokens(MODEL, training(), round(per_parameter * active)).status == status  # a budget's


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="device_bytes=0: it must be positive"):
        check_memory(MODEL, training(), 0)
    with pytest.raises(ValueError, match="tokens=0: it must be positive"):
        check_tokens(MODEL, training(), 0)
