"""The loss of a shared vocabulary is torch's cross-entropy of all of it, and sends three numbers a token."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from gloo import run_processes
from vocabulary_loss_work import BATCH, LENGTH, VOCAB, all_errors, facts

CASES = ("all asked", "some asked", "nothing asked", "large")
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8}
"""Of gradients; values are exact to fp32 at least."""


def test_values_and_gradients_are_those_of_all_logits_in_one_process() -> None:
    cases = list(product(CASES, BOUNDS))
    for results in run_processes(2, all_errors, cases):
        for (case, dtype), found in zip(cases, results, strict=True):
            assert found["nll"] < min(BOUNDS[dtype], 1e-5), (case, dtype)
            assert found["gradient"] < 4 * BOUNDS[dtype], (case, dtype)
            assert found["dtypes"] == [str(torch.promote_types(dtype, torch.float32)), str(dtype)]


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    """By rank of two."""
    return run_processes(2, facts)


def test_a_decoder_s_loss_logits_and_gradients_are_those_of_one_process(found: list[dict[str, Any]]) -> None:
    names = ("mean", "sum", "none", "gradients", "gradients of logits", "logits", "generated")
    for here in (each["of_a_decoder"] for each in found):
        assert max(here[name] for name in names) < 1e-12, here


def test_the_loss_sends_three_numbers_a_token_in_place_of_the_vocabulary(found: list[dict[str, Any]]) -> None:
    """An all-reduce sends 2 (n - 1) / n of its bytes, an all-gather (n - 1) of a part; in fp64, n = 2."""
    tokens, n = 8 * BATCH * LENGTH, 2
    for here in (each["of_a_decoder"] for each in found):
        before = here["forward"]
        logits, loss = (
            {kind: sent - before.get(kind, 0) for kind, sent in here[name].items() if sent != before.get(kind, 0)}
            for name in ("with logits", "with loss")
        )
        assert logits == {"all_gather": (n - 1) * tokens * VOCAB / n}
        assert loss == {"all_reduce": 2 * (n - 1) / n * 3 * tokens}
        assert here["with backward"] == loss


def test_kept_are_the_stretch_in_its_own_dtype_and_numbers_of_a_token(found: list[dict[str, Any]]) -> None:
    for kept, axes in (each["kept_bytes"] for each in found):
        assert kept == 2 * BATCH * LENGTH * VOCAB // 2
        assert axes == 3


def test_labels_that_are_none_of_the_vocabulary_s_are_refused(found: list[dict[str, Any]]) -> None:
    for shape, *beyond in (each["refusals"] for each in found):
        assert shape == "ValueError labels.shape=(2,): it must be (1, 2)"
        assert len(beyond) == 2
        assert all(words.startswith("RuntimeError labels: they must be below vocab_size, or -100") for words in beyond)
