"""The loss-free bias: its algorithm, what is counted and what is not, and that it balances by itself."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routed_cases import drawn, routed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toolkit.routing import BiasBalancer, QuantileBalancer, RoutingStats, TopKRouter, update_balancers

BALANCERS = [lambda: BiasBalancer(5, 0.01), lambda: QuantileBalancer(5, 2)]


def router(balancer: nn.Module, **settings: Any) -> TopKRouter:
    return TopKRouter(4, 5, 2, balancer=balancer, losses=[], **settings)


def pending(balancer: Any) -> list[int]:
    return balancer.pending.flatten().tolist()


@given(st.lists(st.integers(0, 9), min_size=2, max_size=6), st.booleans(), st.sampled_from(["sign", "proportional"]))
def test_a_step_is_the_algorithm_s(counts: list[int], centred: bool, update: str) -> None:
    num_experts = len(counts)
    balancer = BiasBalancer(num_experts, 0.1, centred=centred, update=update)
    before = torch.randn(num_experts)
    balancer.bias.copy_(before)
    balancer.pending.copy_(torch.tensor(counts))
    balancer.update()
    mean = sum(counts) / num_experts
    errors = [mean - count for count in counts]
    if update == "sign":
        steps = [0.1 * ((error > 0) - (error < 0)) for error in errors]
    else:
        steps = [0.1 * error / mean if mean else 0.0 for error in errors]
    drift = sum(steps) / num_experts if centred else 0.0
    expected = [bias + step - drift for bias, step in zip(before.tolist(), steps, strict=True)]
    assert balancer.bias.tolist() == pytest.approx(expected, abs=1e-6)
    assert pending(balancer) == [0] * num_experts


@pytest.mark.parametrize("num_experts", [3, 49, 384])  # of which 1 / n is no exact fraction
def test_at_its_share_an_expert_stays_where_it_is(num_experts: int) -> None:
    balancer = BiasBalancer(num_experts)
    balancer.pending.fill_(1)
    balancer.update()
    assert not balancer.bias.any()


def test_a_target_steers_towards_its_shares_and_leaves_zeros_alone() -> None:
    # LongCat: 2 real experts that should take 1.5 of 2 choices between them, 2 zero-computation experts take the rest.
    balancer = BiasBalancer(4, 0.1, target=[1.5 / (2 * 2)] * 2 + [0.0] * 2, update="proportional")
    balancer.pending.copy_(torch.tensor([10, 30, 40, 20]))
    balancer.update()
    shares = [0.375 - 0.10, 0.375 - 0.30]
    assert balancer.bias.tolist() == pytest.approx([0.1 * 4 * share for share in shares] + [0.0, 0.0], abs=1e-7)
    centred = BiasBalancer(4, 0.1, target=[0.375, 0.375, 0, 0], centred=True)
    centred.pending.copy_(torch.tensor([10, 60, 10, 20]))
    centred.update()
    assert centred.bias.tolist() == pytest.approx([0.1, -0.1, 0.0, 0.0])


def test_under_the_bias_alone_the_load_evens_out() -> None:
    torch.manual_seed(0)
    moe = TopKRouter(16, 8, 2, score="sigmoid", balancer=BiasBalancer(8, 0.01), losses=[])
    favourite = 0.5 * torch.randn(16)
    violations = []
    with torch.no_grad():
        for _ in range(150):
            assignment = moe(torch.randn(512, 16) + favourite)
            violations.append(RoutingStats.of(assignment).max_violation)
            update_balancers(moe)
    assert violations[0] > 0.8
    assert sum(violations[-20:]) / 20 < 0.25 * violations[0]
    assert not moe.weight.grad  # nothing but the bias moved


@pytest.mark.parametrize("make", BALANCERS)
def test_the_bias_moves_the_choice_and_never_the_weight(make: Callable[[], Any]) -> None:
    x, plain = torch.randn(20, 4), router(make(), normalize=False)
    before = plain(x)
    plain.balancer.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, -1.0]))
    after = plain(x)
    assert (after.indices == 0).any(dim=1).all()
    assert not (after.indices == 4).any()
    torch.testing.assert_close(after.weights, before.probabilities.gather(1, after.indices))
    after.weights.sum().backward()
    assert plain.weight.grad is not None
    assert plain.weight.grad.any()
    assert not plain.balancer.bias.requires_grad


@pytest.mark.parametrize("make", BALANCERS)
def test_counts_add_up_over_micro_batches_to_the_whole_batch_s(make: Callable[[], Any]) -> None:
    x = torch.randn(24, 4)
    parts, whole = router(make()), router(make())
    whole.load_state_dict(parts.state_dict())
    for part in x.split(7):
        parts(part)
    whole(x)
    assert pending(parts.balancer) == pending(whole.balancer)
    assert sum(pending(parts.balancer)) > 0


def test_what_is_counted_is_the_choice_before_dropping_without_padding() -> None:
    valid = torch.tensor([True, False, True])
    assignment = routed(drawn(0, 3, 5), 2, valid=valid)
    balancer = BiasBalancer(5)
    balancer.observe(assignment)
    chosen = [
        expert for expert, real in zip(assignment.probabilities.topk(2).indices.tolist(), valid, strict=True) if real
    ]
    assert pending(balancer) == [sum(row.count(e) for row in chosen) for e in range(5)]


@pytest.mark.parametrize("make", BALANCERS)
def test_evaluation_is_not_counted(make: Callable[[], Any]) -> None:
    layer = router(make()).eval()
    layer(torch.randn(9, 4))
    layer.balancer.observe(routed(torch.randn(9, 5), 2))  # nor if it is shown
    assert not any(pending(layer.balancer))
    layer.train()(torch.randn(9, 4))
    assert any(pending(layer.balancer))


@pytest.mark.parametrize("make", BALANCERS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_recompute_is_not_counted_twice(make: Callable[[], Any], reentrant: bool) -> None:
    layer, x = router(make()), torch.randn(9, 4, requires_grad=True)
    layer(x)
    once = pending(layer.balancer)
    layer.balancer.pending.zero_()
    weights = checkpoint(lambda x: layer(x).weight, x, use_reentrant=reentrant)
    weights.square().sum().backward()
    assert pending(layer.balancer) == once


@pytest.mark.parametrize("make", BALANCERS)
@pytest.mark.parametrize("cast", [nn.Module.bfloat16, nn.Module.half, nn.Module.double, lambda m: m.to(torch.bfloat16)])
def test_the_bias_is_fp32_and_exact_whatever_the_model_is_cast_to(
    make: Callable[[], Any], cast: Callable[[nn.Module], nn.Module]
) -> None:
    layer = router(make())
    layer.balancer.bias.fill_(1 + 2**-20)  # which bf16 would round to 1
    cast(layer)
    assert layer.weight.dtype != torch.float32
    assert layer.balancer.bias.dtype == torch.float32
    assert layer.balancer.bias.tolist() == [1 + 2**-20] * 5
    assert layer.balancer.pending.dtype == torch.int64
    assert "balancer.bias" in layer.state_dict()  # still the buffer
    layer(torch.randn(9, 4).to(layer.weight.dtype))
    update_balancers(layer)


@pytest.mark.parametrize("make", BALANCERS)
def test_a_checkpoint_holds_the_bias_and_not_the_counts(make: Callable[[], Any]) -> None:
    layer = router(make())
    layer(torch.randn(30, 4))
    update_balancers(layer)
    layer(torch.randn(30, 4))
    assert list(layer.balancer.state_dict()) == ["bias"]
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = router(make())
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.balancer.bias, layer.balancer.bias)
    assert layer.balancer.bias.any()
    assert not any(pending(other.balancer))


@pytest.mark.parametrize("make", BALANCERS)
def test_without_anything_seen_an_update_does_nothing(make: Callable[[], Any]) -> None:
    layer = router(make())
    layer.balancer.bias.copy_(torch.randn(5))
    before = layer.balancer.bias.clone()
    update_balancers(layer)
    update_balancers(nn.Linear(2, 2))  # nor is there anything to update in a dense model
    assert torch.equal(layer.balancer.bias, before)


def test_all_layers_share_one_collective_and_each_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleList([router(make()) for make in (*BALANCERS, *BALANCERS)])
    apart = copy.deepcopy(model)
    for layer, twin in zip(model, apart, strict=True):
        x = torch.randn(30, 4)
        layer(x)
        twin(x)
        twin.balancer.update()
    sizes: list[int] = []
    monkeypatch.setattr(
        "toolkit.routing.balancer.all_reduce", lambda packed, group: sizes.append(len(packed)) or packed
    )
    update_balancers(model)
    assert sizes == [2 * 5 + 2 * 5 * 1000]
    for layer, twin in zip(model, apart, strict=True):
        assert torch.equal(layer.balancer.bias, twin.balancer.bias)


@pytest.mark.parametrize("make", BALANCERS)
def test_whole_graph_compilation_counts_the_same(make: Callable[[], Any]) -> None:
    layer, x = router(make()), torch.randn(9, 4)
    layer(x)
    once = pending(layer.balancer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        compiled(x).weight.sum().backward()
    assert pending(layer.balancer) == [3 * count for count in once]


def test_nor_does_compiled_code_count_its_recompute() -> None:
    layer, x = router(BiasBalancer(5)), torch.randn(9, 4, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    checkpoint(lambda x: compiled(x).weight, x, use_reentrant=False).sum().backward()
    assert sum(pending(layer.balancer)) == 9 * 2


def test_the_gates_gradients_under_a_bias_are_those_of_finite_differences() -> None:
    layer = router(BiasBalancer(5)).double()
    layer.balancer.bias.copy_(torch.linspace(-0.3, 0.3, 5))
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)

    def gates(x: Tensor) -> Tensor:
        return layer(x).weight

    assert torch.autograd.gradcheck(gates, (x,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": 0}, "num_experts=0"),
        ({"rate": 0.0}, r"rate=0\.0: it must be positive"),
        ({"update": "adam"}, "update='adam'.*'sign', 'proportional'"),
        ({"target": [0.5, 0.5]}, r"target=\[0\.5, 0\.5\]: it must be 4 shares"),
        ({"target": [0.9, 0.9, 0.0, 0.0]}, "at most 1"),
        ({"target": [-0.1, 0.5, 0.1, 0.0]}, "4 shares from 0"),
        ({"target": [0.0] * 4}, "above 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BiasBalancer(**{"num_experts": 4, **settings})


@pytest.mark.parametrize("assign", [False, True])
def test_one_built_on_the_meta_device_starts_with_nothing_seen(assign: bool) -> None:
    with torch.device("meta"):
        router = TopKRouter(8, 4, 2, balancer=BiasBalancer(4), losses=[])
    if not assign:
        router.to_empty(device="cpu")
    router.load_state_dict(TopKRouter(8, 4, 2, balancer=BiasBalancer(4), losses=[]).state_dict(), assign=assign)
    assignment = router(torch.randn(6, 8))
    assert torch.equal(router.balancer.pending, assignment.counts())


def test_one_built_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        balancer = BiasBalancer(4)
    assert not balancer.pending.is_inference()


def test_a_balancer_that_has_not_run_since_it_was_loaded_does_not_hinder_the_others() -> None:
    with torch.device("meta"):
        idle, busy = (BiasBalancer(4) for _ in range(2))
    for balancer in (idle, busy):
        balancer.load_state_dict({"bias": torch.zeros(4)}, assign=True)
    busy.observe(routed(drawn(0, 20, 4), 1))
    update_balancers(torch.nn.ModuleList([idle, busy]))
    assert torch.equal(idle.bias, torch.zeros(4))
    assert busy.bias.any()
