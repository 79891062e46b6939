"""Balance losses: their value at balance and at collapse, their gradient, their groups, and other people's code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from routed_cases import drawn, padded, routed
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from toolkit.routing import BiasBalancer, GShardLoss, LoadBalancingLoss, RouterZLoss, TopKRouter

SEEDS, TOKENS, EXPERTS = st.integers(0, 2**31), st.integers(1, 20), st.integers(2, 6)
LOSSES = [LoadBalancingLoss, lambda c: LoadBalancingLoss(c, "batch"), lambda c: LoadBalancingLoss(c, "sequence")]
EVERY = [*LOSSES, GShardLoss, RouterZLoss]


def by_hand(probabilities: list[list[float]], chosen: list[list[int]]) -> float:
    """E * sum_i f_i P_i, one addition after the other."""
    tokens, num_experts, total = len(probabilities), len(probabilities[0]), 0.0
    choices = sum(len(row) for row in chosen)
    for i in range(num_experts):
        received = sum(row.count(i) for row in chosen) / choices
        total += received * sum(row[i] for row in probabilities) / tokens
    return num_experts * total


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balance_is_hugging_faces_over_top_k(top_k: int) -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = torch.randn(33, 8).requires_grad_()
    ours = LoadBalancingLoss(1.0)(routed(logits, top_k))
    theirs = torch.as_tensor(load_balancing_loss_func((logits,), num_experts=8, top_k=top_k)) / top_k
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(ours, logits)
    (expected,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_with_padding_too_balance_is_hugging_faces_over_top_k() -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    mask = torch.ones(3, 7)
    mask[0, 5:] = mask[2, 2:] = 0
    logits = torch.randn(21, 4)
    ours = LoadBalancingLoss(1.0)(routed(logits, 2, valid=mask.flatten().bool()))
    theirs = torch.as_tensor(load_balancing_loss_func((logits,), num_experts=4, top_k=2, attention_mask=mask)) / 2
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_switchs_own_loss_is_the_top_1_case_and_the_mean_over_its_sequences() -> None:
    from transformers.models.switch_transformers.modeling_switch_transformers import load_balancing_loss_func

    logits = torch.randn(3, 11, 8)
    assignment = routed(logits.flatten(0, 1), 1, sequence_ids=torch.arange(3).repeat_interleave(11))
    theirs = load_balancing_loss_func(logits.softmax(-1), assignment.expert.view(3, 11))
    torch.testing.assert_close(LoadBalancingLoss(1.0, "sequence")(assignment), theirs)
    one = load_balancing_loss_func(logits.softmax(-1).flatten(0, 1)[None], assignment.expert[None])
    torch.testing.assert_close(LoadBalancingLoss(1.0)(assignment), one)
    torch.testing.assert_close(GShardLoss(1.0)(assignment), one)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("coefficient", [0.0, 0.01, 3.0])
@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 1), (4, 2), (6, 3), (5, 5)])
def test_balance_is_the_coefficient_when_every_expert_gets_its_share(
    loss: Callable[[float], LoadBalancingLoss], coefficient: float, num_experts: int, top_k: int
) -> None:
    tokens = 2 * num_experts
    expert = (torch.arange(tokens)[:, None] + torch.arange(top_k)).flatten() % num_experts
    even = replace(routed(torch.zeros(tokens, num_experts), top_k), expert=expert)
    assert float(loss(coefficient)(even)) == pytest.approx(coefficient, rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 1), (4, 2), (6, 3), (5, 5)])
def test_balance_at_collapse_is_the_coefficient_times_experts_over_top_k(
    loss: Callable[[float], LoadBalancingLoss], num_experts: int, top_k: int
) -> None:
    # All tokens share the same K experts, which share the probability: E * K * (1 / K) * (1 / K).
    logits = torch.full((7, num_experts), -torch.inf)
    logits[:, :top_k] = 0.0
    assert float(loss(0.5)(routed(logits, top_k))) == pytest.approx(0.5 * num_experts / top_k, rel=1e-6)


@given(SEEDS, TOKENS, EXPERTS, st.data())
def test_balance_is_its_formula_summed_in_python(seed: int, tokens: int, num_experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    assignment = routed(drawn(seed, tokens, num_experts), top_k)
    expected = by_hand(assignment.probabilities.tolist(), assignment.indices.tolist())
    assert float(LoadBalancingLoss(0.1)(assignment)) == pytest.approx(0.1 * expected, rel=1e-12)


@given(SEEDS, EXPERTS, st.lists(st.integers(1, 7), min_size=1, max_size=5), st.data())
def test_over_sequences_it_is_the_mean_of_each_by_itself(
    seed: int, num_experts: int, lengths: list[int], data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    tokens = sum(lengths)
    valid = data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens))
    steps = data.draw(st.lists(st.integers(1, 3), min_size=len(lengths), max_size=len(lengths)))  # ids may skip some
    ids = torch.tensor(steps).cumsum(0).repeat_interleave(torch.tensor(lengths))
    assignment = routed(drawn(seed, tokens, num_experts), top_k, valid=torch.tensor(valid), sequence_ids=ids)
    p, chosen = assignment.probabilities.tolist(), assignment.indices.tolist()
    values, start = [], 0
    for length in lengths:
        real = [t for t in range(start, start + length) if valid[t]]
        if real:
            values.append(by_hand([p[t] for t in real], [chosen[t] for t in real]))
        start += length
    expected = sum(values) / len(values) if values else 0.0
    assert float(LoadBalancingLoss(1.0, "sequence")(assignment)) == pytest.approx(expected, rel=1e-12)


def test_deepseek_v3_s_sequence_loss_written_out() -> None:
    # Equations 17 to 20 of arXiv 2412.19437: affinities s are sigmoids, P averages s over their sum, f counts the
    # top K of s without the bias that moved the choice.
    balancer = BiasBalancer(6)
    balancer.bias.copy_(torch.linspace(-1, 1, 6))
    router = TopKRouter(5, 6, 2, score="sigmoid", balancer=balancer, losses=[]).double()
    x, ids = torch.randn(8, 5, dtype=torch.float64), torch.arange(8) // 4
    assignment = router(x, sequence_ids=ids)
    s = (x @ router.weight.T).sigmoid().tolist()
    expected = 0.0
    for sequence in (range(4), range(4, 8)):
        for i in range(6):
            f = sum(sorted(s[t], reverse=True).index(s[t][i]) < 2 for t in sequence) * 6 / (2 * 4)
            expected += f * sum(s[t][i] / sum(s[t]) for t in sequence) / 4 / 2
    paper = LoadBalancingLoss(1e-4, "sequence", counted="scores")
    assert float(paper(assignment).detach()) == pytest.approx(1e-4 * expected, rel=1e-12)
    moved = LoadBalancingLoss(1e-4, "sequence")(assignment)
    assert abs(float(moved.detach()) - 1e-4 * expected) > 1e-6  # the bias did move choices


@pytest.mark.parametrize("over", ["global", "batch", "sequence"])
def test_what_scores_choose_is_what_a_router_without_a_bias_chooses(over: str) -> None:
    router, ids = TopKRouter(5, 6, 2, losses=[]).double(), torch.arange(9) // 2
    assignment = router(torch.randn(9, 5, dtype=torch.float64), sequence_ids=ids)
    chosen, scores = (LoadBalancingLoss(1.0, over, counted=counted) for counted in ("chosen", "scores"))
    torch.testing.assert_close(scores(assignment), chosen(assignment), rtol=0, atol=0)


def test_what_scores_choose_needs_a_top_k() -> None:
    uneven = routed(torch.randn(4, 3), 1)
    uneven = replace(uneven, token=uneven.token[:3], expert=uneven.expert[:3], weight=uneven.weight[:3])
    with pytest.raises(ValueError, match="counted='scores'.* 3 choices of 4 tokens"):
        LoadBalancingLoss(counted="scores")(uneven)


def test_gshard_counts_first_choices_only() -> None:
    assignment = routed(drawn(3, 12, 5), 2)
    p = assignment.probabilities.tolist()
    first = [row.index(max(row)) for row in p]
    # Algorithm 1: the mean over experts of c_e / S times m_e; E^2 makes it 1 at balance.
    mean = sum(first.count(e) / 12 * sum(row[e] for row in p) / 12 for e in range(5)) / 5
    assert float(GShardLoss(1.0)(assignment)) == pytest.approx(25 * mean, rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_counts_carry_no_gradient_only_probabilities_do(loss: Callable[[float], LoadBalancingLoss]) -> None:
    assignment = routed(drawn(0, 10, 4), 2)
    probabilities = assignment.probabilities.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(0.3)(replace(assignment, probabilities=probabilities)), probabilities)
    share = torch.bincount(assignment.expert, minlength=4).double() / 20
    torch.testing.assert_close(gradient, (0.3 * 4 * share / 10).expand(10, 4), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", EVERY)
def test_gradients_are_those_of_finite_differences(loss: Callable[[float], torch.nn.Module]) -> None:
    valid = torch.tensor([True, True, False, True, True, False])
    ids = torch.tensor([0, 0, 0, 1, 1, 1])

    def value(logits: Tensor) -> Tensor:
        return loss(0.7)(routed(logits, 2, valid=valid, sequence_ids=ids))

    assert torch.autograd.gradcheck(value, drawn(5, 6, 4).requires_grad_())


def test_a_step_down_the_gradient_evens_the_load_out() -> None:
    torch.manual_seed(1)
    logits = (torch.randn(64, 4) + torch.tensor([2.0, 0.0, 0.0, 0.0])).requires_grad_()
    loss = LoadBalancingLoss(1.0)
    before = routed(logits, 1).counts() / 64
    assert before.max() > 0.5
    for _ in range(300):
        (gradient,) = torch.autograd.grad(loss(routed(logits, 1)), logits)
        logits = (logits - 5 * gradient).detach().requires_grad_()
    assert (routed(logits, 1).counts() / 64).max() < 0.5


@pytest.mark.parametrize("loss", EVERY)
@given(SEEDS, TOKENS, st.data())
def test_padding_changes_neither_value_nor_gradient(
    loss: Callable[[float], torch.nn.Module], seed: int, tokens: int, data: st.DataObject
) -> None:
    logits = drawn(seed, tokens, 4).requires_grad_()
    holes = data.draw(st.lists(st.integers(0, tokens), max_size=5))
    alone, filled = loss(1.0)(routed(logits, 2)), logits.detach()
    rows, valid = padded(filled, holes, fill=7.0)
    rows.requires_grad_()
    together = loss(1.0)(routed(rows, 2, valid=valid))
    torch.testing.assert_close(together, alone, rtol=1e-14, atol=0)
    (expected,) = torch.autograd.grad(alone, logits)
    (gradient,) = torch.autograd.grad(together, rows)
    torch.testing.assert_close(gradient[valid], expected, rtol=1e-13, atol=1e-16)
    assert not gradient[~valid].any()


@pytest.mark.parametrize("loss", EVERY)
def test_no_token_or_only_padding_is_no_loss(loss: Callable[[float], torch.nn.Module]) -> None:
    assert float(loss(1.0)(routed(torch.zeros(0, 4), 2))) == 0.0
    nothing = routed(torch.randn(3, 4), 2, valid=torch.zeros(3, dtype=torch.bool))
    assert float(loss(1.0)(nothing)) == 0.0


def test_over_the_global_batch_ranks_average_to_the_loss_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 12, 5, dtype=torch.float64, requires_grad=True)
    whole = LoadBalancingLoss(1.0)(routed(logits.flatten(0, 1), 2))
    (expected,) = torch.autograd.grad(whole, logits)
    others = [routed(logits[1 - rank], 2).counts() for rank in range(2)]
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    losses = []
    for rank in range(2):
        monkeypatch.setattr(dist, "all_reduce", lambda counts, *_, rank=rank, **__: counts.add_(others[rank]))
        losses.append(LoadBalancingLoss(1.0, over="global")(routed(logits[rank], 2)))
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(mean, whole, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(mean, logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("over", ["batch", "sequence"])
def test_over_the_batch_never_communicates(monkeypatch: pytest.MonkeyPatch, over: str) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: pytest.fail("all_reduce was called"))
    local = LoadBalancingLoss(over=over)(routed(drawn(0, 6, 4), 2))
    monkeypatch.undo()
    torch.testing.assert_close(local, LoadBalancingLoss(over="global")(routed(drawn(0, 6, 4), 2)), rtol=1e-14, atol=0)


def shares(loss: LoadBalancingLoss, assignment: object) -> Tensor:
    """f, read off the gradient: d loss / d p_ti = E f_i / T."""
    probabilities = assignment.probabilities.detach().requires_grad_()  # type: ignore[attr-defined]
    (gradient,) = torch.autograd.grad(loss(replace(assignment, probabilities=probabilities)), probabilities)  # type: ignore[type-var]
    return gradient[0] * len(gradient) / gradient.shape[1]


def test_each_micro_batch_counts_those_before_it_and_the_last_one_the_whole_step() -> None:
    parts = [routed(drawn(seed, 6, 5), 2) for seed in range(6)]
    loss = LoadBalancingLoss(1.0, micro_batches=3)
    for step in (0, 3):  # the second step starts anew
        seen = torch.zeros(5, dtype=torch.float64)
        for part in parts[step : step + 3]:
            seen += part.counts()
            torch.testing.assert_close(shares(loss, part), seen / seen.sum(), rtol=1e-12, atol=0)
        whole = routed(torch.cat([part.logits for part in parts[step : step + 3]]), 2)
        torch.testing.assert_close(seen / seen.sum(), shares(LoadBalancingLoss(1.0), whole), rtol=1e-12, atol=0)


def test_a_step_that_comes_early_is_told_by_reset() -> None:
    first, second = routed(drawn(0, 6, 5), 2), routed(drawn(1, 6, 5), 2)
    loss = LoadBalancingLoss(1.0, micro_batches=3)
    loss.reset()  # before anything was seen, too
    loss(first)
    loss.reset()
    torch.testing.assert_close(shares(loss, second), shares(LoadBalancingLoss(1.0), second), rtol=1e-12, atol=0)


def test_by_default_every_forward_is_a_step_and_in_eval_mode_none_is_counted() -> None:
    first, second = routed(drawn(0, 6, 5), 2), routed(drawn(1, 6, 5), 2)
    plain = LoadBalancingLoss(1.0)
    assert float(plain(first)) != float(plain(second))
    assert float(plain(first)) == float(LoadBalancingLoss(1.0)(first))
    loss = LoadBalancingLoss(1.0, micro_batches=2)
    loss.eval()(first)
    torch.testing.assert_close(shares(loss.train(), second), shares(LoadBalancingLoss(1.0), second), rtol=0, atol=0)
    assert not loss.state_dict()


def test_activation_recompute_neither_counts_twice_nor_changes_the_gradient() -> None:
    router = TopKRouter(4, 5, 2, losses=[LoadBalancingLoss(1.0, micro_batches=2)]).double()
    batches = torch.randn(2, 2, 7, 4, dtype=torch.float64)

    def step(micro_batches: Tensor, recompute: bool) -> Tensor:
        router.zero_grad()
        for x in micro_batches:

            def run(x: Tensor) -> Tensor:
                return router(x).losses["balance"]

            loss = checkpoint(run, x.requires_grad_(), use_reentrant=False) if recompute else run(x)
            loss.backward()
        assert router.weight.grad is not None
        return router.weight.grad.clone()

    for micro_batches in batches:
        torch.testing.assert_close(step(micro_batches, True), step(micro_batches, False), rtol=1e-13, atol=1e-16)


def test_a_recompute_communicates_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    summed: list[Tensor] = []
    monkeypatch.setattr("toolkit.routing.balance.distributed", lambda: True)
    monkeypatch.setattr("toolkit.routing.balance.all_reduce", lambda counts: summed.append(counts) or counts)
    router, x = TopKRouter(4, 5, 2, losses=[LoadBalancingLoss()]), torch.randn(6, 4, requires_grad=True)
    checkpoint(lambda x: router(x).losses["balance"], x, use_reentrant=False).backward()
    assert len(summed) == 1


def test_z_loss_is_switchs() -> None:
    from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

    logits = torch.randn(3, 11, 8)
    flat = logits.flatten(0, 1).requires_grad_()
    ours = RouterZLoss(1.0)(routed(flat, 2))
    torch.testing.assert_close(ours, router_z_loss_func(logits))
    (gradient,) = torch.autograd.grad(ours, flat)
    # d/dz mean(lse^2) = 2 lse softmax(z) / tokens.
    expected = 2 * flat.logsumexp(-1, keepdim=True) * flat.softmax(-1) / 33
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-5, atol=1e-7)


def test_z_loss_is_zero_where_the_normaliser_is_one_and_scales_with_its_coefficient() -> None:
    balanced = torch.full((5, 4), 0.25).log()
    assert float(RouterZLoss(1.0)(routed(balanced, 1))) == pytest.approx(0.0, abs=1e-12)
    assignment = routed(torch.randn(5, 4), 1)
    torch.testing.assert_close(RouterZLoss(0.3)(assignment), 0.3 * RouterZLoss(1.0)(assignment))


def test_z_loss_of_padding_that_is_no_number_has_no_gradient() -> None:
    rows, valid = padded(drawn(0, 4, 3), [1, 4])
    rows.requires_grad_()
    (gradient,) = torch.autograd.grad(RouterZLoss(1.0)(routed(rows, 2, valid=valid)), rows)
    assert gradient.isfinite().all()
    assert not gradient[~valid].any()
    assert gradient[valid].all()


def test_z_loss_is_of_the_clean_logits() -> None:
    assignment = routed(torch.randn(5, 4), 1)
    noisy = replace(assignment, noisy_logits=assignment.logits + 3, noise_std=torch.ones(5, 4))
    assert float(RouterZLoss(1.0)(noisy)) == float(RouterZLoss(1.0)(assignment))


def test_unknown_settings_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"over='layer'.*'global', 'batch', 'sequence'"):
        LoadBalancingLoss(over="layer")
    with pytest.raises(ValueError, match=r"counted='bias'.*'chosen', 'scores'"):
        LoadBalancingLoss(counted="bias")
    with pytest.raises(ValueError, match=r"micro_batches=0: it must be positive"):
        LoadBalancingLoss(micro_batches=0)


def test_a_router_can_have_one_over_each_group() -> None:
    losses = [LoadBalancingLoss(over=over) for over in ("global", "batch", "sequence")]
    assert [loss.name for loss in losses] == ["balance", "batch_balance", "sequence_balance"]
    assert set(TopKRouter(4, 5, 2, losses=losses)(torch.randn(3, 4)).losses) == {loss.name for loss in losses}
    assert (RouterZLoss().name, GShardLoss().name) == ("z", "gshard")
    assert (LoadBalancingLoss().coefficient, RouterZLoss().coefficient) == (0.01, 0.001)


def test_whole_graph_compilation_gives_the_same_losses_and_counts() -> None:
    losses = [LoadBalancingLoss(micro_batches=2), LoadBalancingLoss(over="sequence"), GShardLoss(), RouterZLoss()]
    router = TopKRouter(4, 5, 2, losses=losses)
    compiled, x = torch.compile(router, fullgraph=True, backend="aot_eager"), torch.randn(2, 9, 4)
    ids, valid = torch.arange(9) // 3, torch.arange(9) != 4
    expected = [router(part, sequence_ids=ids, valid=valid).losses for part in x]  # one step of two micro-batches
    for part, losses_of_it in zip(x, expected, strict=True):
        got = compiled(part, sequence_ids=ids, valid=valid).losses
        for name, loss in losses_of_it.items():
            torch.testing.assert_close(got[name], loss, msg=name)


def test_a_forward_in_inference_mode_does_not_stop_training() -> None:
    loss = LoadBalancingLoss(1.0)
    given = TopKRouter(8, 4, 2)(torch.randn(6, 8))
    with torch.inference_mode():
        before = loss(given)
    torch.testing.assert_close(loss(given), before.clone())


def test_two_checkpointed_forwards_before_their_backward_keep_their_own_counts() -> None:
    from torch.utils.checkpoint import checkpoint

    router = TopKRouter(8, 4, 2, losses=[LoadBalancingLoss(1.0)]).double()
    batches = [torch.randn(9, 8).double() + shift for shift in (-1.0, 1.0)]

    def loss(x: Tensor) -> Tensor:
        return router(x).losses["balance"]

    plain = torch.autograd.grad(sum(loss(x) for x in batches), router.weight)
    again = torch.autograd.grad(sum(checkpoint(loss, x, use_reentrant=False) for x in batches), router.weight)
    torch.testing.assert_close(again[0], plain[0], rtol=0, atol=1e-14)
