"""Two processes, half of the tokens each, against one with all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from halves import MICRO_BATCHES, STEPS, train

from toolkit.routing.reduce import all_reduce, distributed

SCRIPT = Path(__file__).with_name("halves.py")


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[float]]]:
    folder = tmp_path_factory.mktemp("halves")
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(folder), str(rank)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors.decode()[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_biases_losses_gradients_and_statistics_are_one_process_s(halves: list[dict[str, list[float]]]) -> None:
    alone = train(rank=0, world=1)
    assert set(halves[0]) == set(halves[1]) == set(alone)
    for name, expected in alone.items():
        if name.startswith("loss"):  # P is each rank's own, and so is the loss: their mean is the whole batch's
            found = [(one + two) / 2 for one, two in zip(*(half[name] for half in halves), strict=True)]
            assert found == pytest.approx(expected, rel=1e-12), name
        else:
            for half in halves:
                assert half[name] == pytest.approx(expected, rel=1e-9, abs=1e-12), name
    assert len(alone["loss"]) == STEPS * MICRO_BATCHES
    assert len(set(alone["bias"])) > 1  # there is something to agree on
    assert len(set(alone["quantile_bias"])) > 1


def test_alone_there_is_nothing_to_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(3.0)
    assert not distributed()
    assert all_reduce(values) is values
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda total, op, group: total.mul_(2 if op == dist.ReduceOp.SUM else 3))
    assert all_reduce(values).tolist() == [0.0, 2.0, 4.0]
    assert all_reduce(values, largest=True).tolist() == [0.0, 3.0, 6.0]
    assert values.tolist() == [0.0, 1.0, 2.0]
