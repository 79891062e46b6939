"""Expert choice: what each expert takes, by a plain loop; the threshold; and when it reads the future."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routing_laws import (
    DIM,
    EXPERTS,
    check_compiles,
    check_equivariance,
    check_few_tokens,
    check_padding,
    check_precision,
    check_replay,
    check_triples,
    earlier_pairs_after_a_change,
    pairs,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from toolkit.routing import ExpertChoiceRouter, RouterZLoss, RoutingReplay


def plain_choice(scores: Tensor, lengths: list[int], valid: list[bool], factor: float) -> set[tuple[int, int]]:
    """Each expert's best tokens of each sequence, one sequence and one expert at a time."""
    taken, start = set(), 0
    for length in lengths:
        real = [token for token in range(start, start + length) if valid[token]]
        start += length
        for expert in range(scores.shape[1]):
            best = sorted(real, key=lambda token: -float(scores[token, expert]))
            taken |= {(token, expert) for token in best[: math.ceil(len(real) * factor / scores.shape[1])]}
    return taken


@given(st.integers(0, 2**31), st.lists(st.integers(0, 9), max_size=4), st.sampled_from([0.25, 1.0, 2.0, 5.0]))
def test_every_expert_takes_its_best_tokens_of_each_sequence(seed: int, lengths: list[int], factor: float) -> None:
    torch.manual_seed(seed)
    tokens = sum(lengths)
    x, valid = torch.randn(tokens, DIM), torch.rand(tokens) < 0.8
    ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    router = ExpertChoiceRouter(DIM, EXPERTS, factor)
    for sizes, sequence_ids in ((lengths, ids), ([tokens], None)):
        assignment = router(x, sequence_ids=sequence_ids, valid=valid)
        found = pairs(assignment)
        probabilities = torch.softmax(x @ router.weight.T, dim=-1).detach()
        assert found.keys() == plain_choice(probabilities, sizes, valid.tolist(), factor)
        for pair, gate in found.items():
            assert gate == pytest.approx(float(probabilities[pair]), rel=1e-5)


def test_every_expert_has_its_capacity_and_tokens_use_the_factor_on_average() -> None:
    router = ExpertChoiceRouter(DIM, EXPERTS, 2.0)
    assignment = router(torch.randn(20, DIM))
    assert assignment.counts().tolist() == [8] * EXPERTS
    assert len(assignment.token) == 8 * EXPERTS  # and no row is wasted where there is one sequence
    assert len(pairs(assignment)) == router.rows(20) == 2 * 20
    each = [sum(token == t for token, _ in pairs(assignment)) for t in range(20)]
    assert min(each) < 2 < max(each)
    assert assignment.losses == {}


@pytest.mark.parametrize("evaluation", ["threshold", "choice"])
def test_the_laws_of_every_router(evaluation: str) -> None:
    router = ExpertChoiceRouter(DIM, EXPERTS, evaluation=evaluation, losses=[RouterZLoss()])
    check_triples(deepcopy(router))
    check_few_tokens(deepcopy(router))
    check_replay(deepcopy(router))
    check_padding(router)
    check_precision(router)
    check_equivariance(router)
    check_equivariance(router.eval())
    check_compiles(router)


def test_a_replay_of_more_than_the_capacity_loses_nothing() -> None:
    router, everything = ExpertChoiceRouter(DIM, EXPERTS, 0.4), torch.ones(15, EXPERTS, dtype=torch.bool)
    with RoutingReplay({"": [everything]}).play(router):
        assignment = router(torch.randn(15, DIM))
    assert len(pairs(assignment)) == 15 * EXPERTS


def test_training_reads_the_future_and_so_does_choice_but_not_the_threshold() -> None:
    threshold = ExpertChoiceRouter(DIM, EXPERTS)
    choice = ExpertChoiceRouter(DIM, EXPERTS, evaluation="choice")
    assert (threshold.causal, choice.causal) == ("evaluation", "never")
    assert not earlier_pairs_after_a_change(threshold)
    assert earlier_pairs_after_a_change(threshold.eval())
    assert not earlier_pairs_after_a_change(choice.eval())


def test_choice_in_evaluation_is_that_of_training() -> None:
    router, x = ExpertChoiceRouter(DIM, EXPERTS, evaluation="choice"), torch.randn(20, DIM)
    assert pairs(router(x)) == pairs(router.eval()(x))
    assert int(router.batches) == 1


def test_after_one_batch_the_threshold_takes_from_it_what_training_took() -> None:
    router, x = ExpertChoiceRouter(DIM, EXPERTS), torch.randn(20, DIM)
    assert pairs(router(x)) == pairs(router.eval()(x))


def test_the_threshold_is_the_mean_of_the_batches_first_and_their_moving_average_then() -> None:
    router = ExpertChoiceRouter(DIM, EXPERTS, 2.0, momentum=0.75)
    expected = torch.full((EXPERTS,), torch.nan)
    for n in range(1, 9):
        x = torch.randn(20, DIM)
        ids = torch.arange(20) // 10
        router(x, sequence_ids=ids)
        scores = torch.softmax(x @ router.weight.detach().T, dim=-1).view(2, 10, EXPERTS)
        last = scores.sort(dim=1, descending=True).values[:, 3].mean(0)  # C = 10 * 2 / 5
        expected = last if n == 1 else expected + (last - expected) * max(1 / n, 0.25)
        torch.testing.assert_close(router.threshold, expected, rtol=1e-5, atol=1e-7)


def test_on_tokens_of_the_same_kind_the_threshold_keeps_the_capacity_on_average() -> None:
    router = ExpertChoiceRouter(DIM, EXPERTS, 1.5)
    for _ in range(100):
        router(torch.randn(200, DIM))
    taken = len(pairs(router.eval()(torch.randn(4000, DIM)))) / 4000
    assert taken == pytest.approx(1.5, abs=0.1)


def test_only_training_moves_the_threshold_and_a_batch_without_tokens_does_not() -> None:
    router = ExpertChoiceRouter(DIM, EXPERTS)
    assert router.threshold.tolist() == pytest.approx([1 / EXPERTS] * EXPERTS)
    start = {name: value.clone() for name, value in router.state_dict().items()}
    router.eval()(torch.randn(9, DIM))
    router.train()(torch.randn(0, DIM))
    router(torch.randn(5, DIM), valid=torch.zeros(5, dtype=torch.bool))
    for name, value in router.state_dict().items():
        assert torch.equal(value, start[name]), name
    router(torch.randn(9, DIM))
    assert int(router.batches) == 1
    assert not torch.equal(router.threshold, start["threshold"])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputed_activations_do_not_count_twice(use_reentrant: bool) -> None:
    plain = ExpertChoiceRouter(DIM, EXPERTS)
    recomputed = deepcopy(plain)
    x = torch.randn(20, DIM, requires_grad=True)
    plain(x).weight.sum().backward()
    checkpoint(lambda x: recomputed(x).weight, x, use_reentrant=use_reentrant).sum().backward()
    assert int(recomputed.batches) == 1
    assert torch.equal(recomputed.threshold, plain.threshold)
    assert recomputed.weight.grad is not None


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_compiled_code_that_is_recomputed_moves_the_threshold_once(use_reentrant: bool) -> None:
    torch._dynamo.reset()
    plain = ExpertChoiceRouter(DIM, EXPERTS)
    recomputed = deepcopy(plain)
    compiled = torch.compile(lambda x: recomputed(x).weight, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = torch.randn(20, DIM, requires_grad=True)
        plain(x)
        checkpoint(compiled, x, use_reentrant=use_reentrant).sum().backward()
    assert int(recomputed.batches) == int(plain.batches) == 2
    torch.testing.assert_close(recomputed.threshold, plain.threshold)


def test_the_threshold_is_in_the_checkpoint_and_fp32_in_a_half_precision_model() -> None:
    router = ExpertChoiceRouter(DIM, EXPERTS)
    router(torch.randn(20, DIM))
    exact = router.threshold.clone()
    for cast in (router.bfloat16, router.half, router.double, lambda: router.to(torch.bfloat16)):
        cast()
        assert router.threshold.dtype == torch.float32
        assert torch.equal(router.threshold, exact)
    loaded = ExpertChoiceRouter(DIM, EXPERTS)
    loaded.load_state_dict(router.state_dict())
    assert torch.equal(loaded.threshold, exact)
    assert router.to("meta").threshold.shape == (EXPERTS,)
    assert router.to_empty(device="cpu").threshold.dtype == torch.float32


def test_the_threshold_is_the_mean_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = torch.randn(2, 20, DIM)
    alone = ExpertChoiceRouter(DIM, EXPERTS)
    thresholds = []
    for batch in batches:
        one = deepcopy(alone)
        one(batch)
        thresholds.append(one.threshold)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    other = torch.stack([thresholds[1], torch.ones(EXPERTS)])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda found, *_, **__: found.add_(other))
    alone(batches[0])
    torch.testing.assert_close(alone.threshold, (thresholds[0] + thresholds[1]) / 2)


def test_gradcheck_of_the_gates_in_fp64() -> None:
    router = ExpertChoiceRouter(3, 4, 2.0).double()
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    # The finite differences must not change what is taken.
    assert float(router(x).probabilities.detach().sort(dim=0).values.diff(dim=0).min()) > 1e-4

    def gates(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(router, {"weight": weight}, (x,)).weight

    assert torch.autograd.gradcheck(gates, (x, router.weight))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity_factor": 0}, r"capacity_factor=0: it must be above 0 and at most num_experts=5"),
        ({"capacity_factor": 5.5}, r"capacity_factor=5.5: it must be above 0 and at most num_experts=5"),
        ({"evaluation": "topk"}, r"evaluation='topk': it must be one of 'threshold', 'choice'"),
        ({"momentum": 1.0}, r"momentum=1.0: it must be at least 0 and below 1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertChoiceRouter(DIM, EXPERTS, **settings)


def test_a_batch_of_nans_leaves_the_threshold_as_it_was() -> None:
    router = ExpertChoiceRouter(DIM, EXPERTS)
    router(torch.randn(9, DIM))
    before = router.threshold.clone()
    router(torch.full((9, DIM), torch.nan))
    assert torch.equal(router.threshold, before)
    router(torch.randn(9, DIM))
    assert router.threshold.isfinite().all()
