"""In a pipeline every process tells what is not finite; low precision and accumulation are one process's."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from fit_work import CONFIG
from gloo import run_processes
from guard_work import told, tried, weights

from toolkit.parallel import ParallelConfig

TWO = ParallelConfig(pipeline=2, accelerator="cpu")
CONFIGS = {
    "64-true": replace(CONFIG, batch_size=4, steps=4),
    "bf16-mixed": replace(CONFIG, batch_size=4, steps=2, precision="bf16-mixed"),
}
"""Two micro-batches of two sequences, in each of two accumulated batches."""


@cache
def in_two() -> list[list[Any]]:
    """What is said of NaN in the last stage's norm and the first stage's router, then the weights."""
    names = ["norm.weight", "blocks.0.feed_forward.router.weight"]
    cases = [(told, name) for name in names]
    return run_processes(2, tried, cases + [(weights, config, TWO, 2) for config in CONFIGS.values()])  # type: ignore[operator]


def test_every_process_tells_the_step_the_rank_and_the_layer() -> None:
    for last, router in (found[:2] for found in in_two()):
        assert last.startswith("step 2 is not finite: rank 1: loss nan, from norm on. The")
        assert router.startswith("router logits of blocks.0.feed_forward at step 2")
        assert router.endswith("; in rank 0")  # those of the last stage follow from it


@pytest.mark.parametrize("precision", CONFIGS)
def test_accumulated_batches_of_micro_batches_are_those_of_one_process(precision: str) -> None:
    """Bit for bit the same products; only sums over micro-batches may be added in another order."""
    config = CONFIGS[precision]
    right = weights(replace(config, batch_size=2), None, 4)
    tolerance = 1e-10 if precision == "64-true" else 2e-5
    for found in (each[2 + list(CONFIGS).index(precision)] for each in in_two()):
        assert found.keys() == right.keys()
        for name, expected in right.items():
            np.testing.assert_allclose(found[name], expected, rtol=tolerance, atol=tolerance, err_msg=name)
