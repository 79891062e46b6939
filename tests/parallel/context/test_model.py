"""A decoder over parts of sequences learns what it learns from whole ones: losses, gradients and weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from context_model_work import Case, refusals, train, train_parts
from gloo import run_processes

from toolkit.models import AttentionConfig

STREAMING = "Causal() & (SlidingWindow(7) | GlobalTokens(positions=[1, 20, 40]))"
"""The second global position lies beyond the first part, the third beyond the whole sequence."""

CASES = {
    "ring, grouped, sinks, experts": Case(
        (
            AttentionConfig(heads=4, kv_heads=2, sinks=True, softcap=3.0, qk_norm=True),
            AttentionConfig(heads=4, kv_heads=1, pattern=STREAMING, rope_scaling="LinearScaling(factor=2)"),
        )
    ),
    "ring, packed, contiguous": Case(
        (
            AttentionConfig(heads=2, pattern="Causal() & (SlidingWindow(5) | Sinks(1))"),
            AttentionConfig(heads=2, kv_heads=1, sinks=True),
        ),
        layout="contiguous",
        packed=True,
        router="TopKRouter(score='sigmoid', balancer=BiasBalancer(rate=0.05))",
    ),
    "ring, dropout": Case(
        (AttentionConfig(heads=2, dropout_p=0.2), AttentionConfig(heads=2, pattern=STREAMING, dropout_p=0.1)), moe=False
    ),
    "ulysses, dropout": Case(
        (AttentionConfig(heads=4, kv_heads=1, dropout_p=0.2, sinks=True), AttentionConfig(heads=4, dropout_p=0.1)),
        moe=False,
        method="ulysses",
    ),
    "ring, padded, token ids": Case(
        (AttentionConfig(heads=2), AttentionConfig(heads=2, pattern="PrefixLM(9)")),
        padded=True,
        router="HashRouter()",
    ),
    "ring, single precision": Case(
        (AttentionConfig(heads=2, sinks=True), AttentionConfig(heads=2, pattern=STREAMING)),
        moe=False,
        dtype=torch.float32,
    ),
    "ring, weights sharded": Case(
        (AttentionConfig(heads=2, sinks=True), AttentionConfig(heads=2, pattern=STREAMING)), sharded=True
    ),
    "ulysses, patterns": Case(
        (AttentionConfig(heads=4, kv_heads=1, sinks=True), AttentionConfig(heads=4, pattern=STREAMING)),
        method="ulysses",
    ),
    "ulysses, packed": Case(
        (AttentionConfig(heads=4, kv_heads=2, pattern="Causal() & (SlidingWindow(5) | Sinks(1))"),),
        method="ulysses",
        packed=True,
        moe=False,
    ),
    "ulysses, MoBA": Case(
        (AttentionConfig(heads=4, kv_heads=2, pattern="MoBA(block=4, top_k=3)", sinks=True),) * 2,
        method="ulysses",
        layout="contiguous",
    ),
    "ulysses, native sparse": Case(
        (
            AttentionConfig(
                heads=8,
                kv_heads=4,
                head_dim=4,
                pattern="NativeSparse(block=4, top_k=4, compress_block=4, stride=2, window=6, initial=1, local=1, "
                "compress_hidden_dim=6, separate_kv=True)",
            ),
        )
        * 2,
        method="ulysses",
    ),
}

MIXED = (
    AttentionConfig(heads=4, kv_heads=1, sinks=True, dropout_p=0.1, rope_scaling="YaRNScaling(4, 16)"),
    AttentionConfig(heads=4, kv_heads=2, pattern="Causal() & SlidingWindow(9)", rope_scaling="Llama3Scaling(8, 16)"),
)
CASES |= {
    f"{method}, {name}": Case(MIXED, method=method, packed=True, **settings)
    for method in ("ring", "ulysses")
    for name, settings in {
        "recomputed": {"recompute": "full"},
        "recomputed in part": {"recompute": "selective"},
        "compiled": {"compiled": True},
    }.items()
}


@pytest.fixture(scope="module")
def single() -> dict[str, tuple[list[float], dict[str, np.ndarray]]]:
    return {name: train(case) for name, case in CASES.items()}


FEW = ["ring, grouped, sinks, experts", "ring, packed, contiguous", "ulysses, MoBA"]


@pytest.mark.parametrize(
    ("ranks", "groups", "names"),
    [
        (2, 1, [name for name, case in CASES.items() if not case.compiled]),
        (4, 1, FEW),
        (4, 2, ["ring, dropout"]),
        pytest.param(2, 1, [name for name, case in CASES.items() if case.compiled], marks=pytest.mark.slow),
        pytest.param(4, 1, [*CASES], marks=pytest.mark.slow),
    ],
    ids=["2", "4", "2 groups of 2", "2, compiled", "4, every case"],
)
def test_three_steps_on_parts_are_three_steps_on_the_whole(
    ranks: int, groups: int, names: list[str], single: dict
) -> None:
    for found in run_processes(ranks, train_parts, {name: CASES[name] for name in names}, groups):
        for name in names:
            losses, values = single[name]
            exact = 1e-10 if CASES[name].dtype == torch.float64 else 1e-5
            assert found[name][0] == pytest.approx(losses, rel=0, abs=exact), name
            assert found[name][1].keys() == values.keys(), name
            for key, value in values.items() if exact == 1e-10 else ():
                np.testing.assert_allclose(found[name][1][key], value, rtol=0, atol=1e-10, err_msg=f"{name}: {key}")


@pytest.fixture(scope="module")
def said_by_rank() -> list[dict[str, str]]:
    return run_processes(2, refusals)


def test_a_copy_talks_to_the_same_ranks(said_by_rank: list[dict[str, str]]) -> None:
    assert [said["copy"] for said in said_by_rank] == ["True", "True"]


def test_what_parts_of_sequences_cannot_do_is_refused(said_by_rank: list[dict[str, str]]) -> None:
    for said in said_by_rank:
        assert said["generate"].startswith("cache=") and "None under context parallelism" in said["generate"]
        assert "attend=" in said["again"] and "the seam is taken already" in said["again"]
        assert said["uneven padding"].startswith("valid=[4, 8]: it must be of as many real tokens on every rank")
        assert said["odd length"].startswith("length=14: it must be a multiple of 4")
