"""Records of a run are read back as they were written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from synthetic_study import run_result

from toolkit.scaling.run_records import balance_curve, expert_loads, loss_curve

ROW = run_result("moe", 1e12, 32, 0, 2.0)


def test_losses_by_flops(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "flops": 1e9, "train/loss": 5.0, "train/learning_rate": 0.1},
        {"step": 5, "flops": 5e9, "train/loss": 4.0, "train/learning_rate": 0.1},
        {"step": 5, "flops": 5e9, "validation/bits_per_byte": 3.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = loss_curve(tmp_path, ROW)
    assert (curve.run, curve.family, curve.budget) == (ROW.run, "moe", 1e12)
    assert (curve.flops.tolist(), curve.train_loss.tolist()) == ([1e9, 5e9], [5.0, 4.0])
    assert (curve.validated_at.tolist(), curve.bits_per_byte.tolist()) == ([5e9], [3.5])


def test_a_run_cut_off_before_its_validation_has_none(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"flops": 1.0, "train/loss": 5.0}\n')
    assert loss_curve(tmp_path, ROW).bits_per_byte.shape == (0,)


def test_balance_of_loads_that_are_known(tmp_path: Path) -> None:
    """Even loads: 0 and 1. One expert for all: experts - 1 and 0. Half of the experts evenly: 1 and 1/2 of log 4."""
    even, one, half = [0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]
    np.savez(tmp_path / "load.npz", steps=[1, 500, 900], layer0=[even, one, half])
    curve = balance_curve(tmp_path, ROW)
    assert curve is not None
    np.testing.assert_allclose(curve.share, [0.001, 0.5, 0.9])
    np.testing.assert_allclose(curve.max_violation, [0, 3, 1])
    np.testing.assert_allclose(curve.load_entropy, [1, 0, math.log(2) / math.log(4)], atol=1e-12)


def test_layers_are_averaged(tmp_path: Path) -> None:
    np.savez(tmp_path / "load.npz", steps=[1], layer0=[[1.0, 0]], layer1=[[0.5, 0.5]])
    curve = balance_curve(tmp_path, ROW)
    assert curve is not None
    assert curve.max_violation.tolist() == [0.5]
    steps, loads = expert_loads(tmp_path)
    assert steps.tolist() == [1]
    assert list(loads) == ["layer0", "layer1"]


def test_a_dense_run_has_no_balance(tmp_path: Path) -> None:
    assert balance_curve(tmp_path, ROW) is None
    assert expert_loads(tmp_path)[1] == {}


@pytest.mark.parametrize("loads", [[[0.5, 0.4], [0.5, 0.5]], [[0.5, 0.5]], [[math.nan, math.nan], [0.5, 0.5]]])
def test_loads_that_are_no_shares_are_refused(tmp_path: Path, loads: list) -> None:  # type: ignore[type-arg]
    np.savez(tmp_path / "load.npz", steps=[1, 2], layer0=loads)
    with pytest.raises(ValueError, match="layer0"):
        balance_curve(tmp_path, ROW)
