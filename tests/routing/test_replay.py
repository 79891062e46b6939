"""Routing replay: the same experts again, with fresh gates, through whole models, forwards and checkpointing."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toolkit.routing import Assignment, GaussianNoise, GShardRouter, Router, RoutingReplay, SwitchRouter, TopKRouter
from toolkit.routing.fixed import RandomRouter
from toolkit.routing.sinkhorn import SinkhornRouter

DIM, EXPERTS = 6, 5
ROUTERS = {
    "softmax": lambda: TopKRouter(DIM, EXPERTS, 2),
    "sigmoid": lambda: TopKRouter(DIM, EXPERTS, 3, score="sigmoid", groups=1, top_groups=1),
    "noisy": lambda: TopKRouter(DIM, EXPERTS, 2, noise=GaussianNoise(1.0)),
    "switch": lambda: SwitchRouter(DIM, EXPERTS, jitter=0.5),
    "gshard": lambda: GShardRouter(DIM, EXPERTS),
    "sinkhorn": lambda: SinkhornRouter(DIM, EXPERTS, 2),
    "random": lambda: RandomRouter(EXPERTS, 2),
}


class Layer(nn.Module):
    """As little of a MoE layer as has a gradient: each expert is one vector."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router
        self.experts = nn.Parameter(torch.randn(EXPERTS, DIM))
        self.seen: list[Assignment] = []

    def forward(self, x: Tensor) -> Tensor:
        assignment = self.router(x)
        self.seen.append(assignment)
        parts = assignment.weight[:, None] * self.experts[assignment.expert.clamp(min=0)]
        return x + torch.zeros_like(x).index_add(0, assignment.token, parts)


def network(layers: int = 2) -> nn.Sequential:
    return nn.Sequential(*(Layer(TopKRouter(DIM, EXPERTS, 2, losses=[])) for _ in range(layers)))


def choices(model: nn.Module) -> list[list[list[int]]]:
    """What each layer chose, forward by forward."""
    return [[seen.choice.tolist() for seen in layer.seen] for layer in model]


@pytest.mark.parametrize("kind", ROUTERS)
def test_experts_are_those_of_the_record_whatever_the_weights_are_now(kind: str) -> None:
    router, other = ROUTERS[kind](), ROUTERS[kind]()
    x, y = torch.randn(2, 40, DIM)
    with RoutingReplay.record(router) as replay:
        before = router(x), router(y)
    assert not torch.equal(other(x).choice, before[0].choice)
    with replay.play(other):
        again = other(x), other(y)
    for first, second in zip(before, again, strict=True):
        assert torch.equal(first.choice, second.choice)
        assert torch.equal(first.counts(), second.counts())
    with replay.play(other):  # and from the first forward once more
        assert torch.equal(other(x).choice, before[0].choice)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "switch", "gshard"])
def test_gates_are_fresh_scores_of_the_experts_replayed_and_carry_gradient(kind: str) -> None:
    router, other = ROUTERS[kind](), ROUTERS[kind]()
    router.noise = other.noise = None
    x = torch.randn(40, DIM)
    with RoutingReplay.record(router) as replay:
        before = router(x)
    with replay.play(other):
        after = other(x)
    raw = torch.sigmoid(after.logits) if kind == "sigmoid" else after.logits.softmax(-1)
    gates = raw[after.token, before.expert.clamp(min=0)].view(40, -1)
    if kind == "gshard":  # the second gate is not in the triples where it was left out, so take tokens that have both
        both = (before.expert.view(40, 2) >= 0).all(dim=1)
        assert both.any() and not both.all()
        gates, weights = gates[both], after.weight.view(40, 2)[both]
    else:
        weights = after.weights
    expected = gates if kind == "switch" else gates / gates.sum(-1, keepdim=True)
    torch.testing.assert_close(weights, expected)
    (gradient,) = torch.autograd.grad((weights * torch.randn(weights.shape)).sum(), other.weight)
    assert (gradient != 0).any()


def test_with_the_same_weights_output_and_gradients_are_the_same() -> None:
    model = network()
    x = torch.randn(9, DIM)
    with RoutingReplay.record(model) as replay:
        first = model(x)
    with replay.play(model):
        second = model(x)
    assert torch.equal(first, second)
    cotangent = torch.randn(9, DIM)
    found = torch.autograd.grad((second * cotangent).sum(), tuple(model.parameters()))
    expected = torch.autograd.grad((first * cotangent).sum(), tuple(model.parameters()))
    assert all(torch.equal(mine, yours) for mine, yours in zip(found, expected, strict=True))


def test_a_whole_model_over_several_forwards_of_several_sizes() -> None:
    model, other = network(3), network(3)
    inputs = [torch.randn(n, DIM) for n in (4, 7, 1)]
    with RoutingReplay.record(model) as replay:
        for x in inputs:
            model(x)
    assert {name: [len(c) for c in chosen] for name, chosen in replay.choices.items()} == {
        f"{n}.router": [4, 7, 1] for n in range(3)
    }
    with replay.play(other):
        for x in inputs:
            other(x)
    assert choices(other) == choices(model)


def test_afterwards_routers_choose_for_themselves_even_after_an_error() -> None:
    router = TopKRouter(DIM, EXPERTS, 2)
    x = torch.randn(40, DIM)
    with RoutingReplay.record(router) as replay:
        router(x)
    nn.init.normal_(router.weight)
    own = router(x).expert
    with replay.play(router):
        assert not torch.equal(router(x).expert, own)
    assert torch.equal(router(x).expert, own)
    with pytest.raises(RuntimeError, match="stop"), replay.play(router):
        raise RuntimeError("stop")
    assert torch.equal(router(x).expert, own)
    assert router.tape is None
    assert len(replay.choices[""]) == 1


def test_a_record_within_a_replay_is_of_what_was_replayed() -> None:
    router, other = TopKRouter(DIM, EXPERTS, 2), TopKRouter(DIM, EXPERTS, 2)
    x = torch.randn(40, DIM)
    with RoutingReplay.record(router) as replay:
        before = router(x)
    with replay.play(other), RoutingReplay.record(other) as copy:
        other(x)
    assert torch.equal(copy.choices[""][0].flatten(), before.expert)


def test_choices_may_come_from_elsewhere() -> None:
    router = TopKRouter(DIM, EXPERTS, 2)
    given = torch.tensor([[0, 4], [3, 1]])
    with RoutingReplay({"": [given]}).play(router):
        assert torch.equal(router(torch.randn(2, DIM)).indices, given)


def test_padding_stays_out() -> None:
    router = TopKRouter(DIM, EXPERTS, 2)
    x, valid = torch.randn(3, DIM), torch.tensor([True, False, True])
    with RoutingReplay.record(router) as replay:
        router(x, valid=valid)
    with replay.play(router):
        assert (router(x, valid=valid).expert.view(3, 2)[1] == -1).all()


def flip(model: nn.Module) -> None:
    """Change what every router chooses, between a forward and its recomputation, as rounding may."""
    for layer in model:
        layer.router.weight.data = layer.router.weight.data.flip(0)


@pytest.mark.parametrize("outer", ["nothing", "record", "play"])
def test_recomputation_with_a_record_of_its_own_chooses_what_its_forward_chose(outer: str) -> None:
    model = network()
    inputs = [torch.randn(40, DIM, requires_grad=True) for _ in range(2)]
    other = RoutingReplay({f"{n}.router": [torch.randint(EXPERTS, (40, 2)) for _ in inputs] for n in range(2)})
    record = RoutingReplay.record(model)
    with {"nothing": nullcontext(), "record": record, "play": other.play(model)}[outer]:
        outputs = [
            checkpoint(model, x, use_reentrant=False, context_fn=lambda: RoutingReplay.contexts(model)) for x in inputs
        ]
        flip(model)
        sum(y.sum() for y in outputs).backward()
    for first, second, second_again, first_again in choices(model):
        # Backward runs the second forward's recomputation before the first one's.
        assert (first, second) == (first_again, second_again)
    if outer == "play":
        assert choices(model)[0][0] == other.choices["0.router"][0].flatten().tolist()
    if outer == "record":
        assert [len(chosen) for chosen in record.replay.choices.values()] == [2, 2]


def test_recomputation_without_one_may_flip() -> None:
    model = network()
    y = checkpoint(model, torch.randn(40, DIM), use_reentrant=False)
    flip(model)
    y.sum().backward()
    forward, again = choices(model)[0]
    assert forward != again


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_is_not_recorded_and_not_guessed_at(use_reentrant: bool) -> None:
    model = network()
    x = torch.randn(4, DIM, requires_grad=True)
    with RoutingReplay.record(model) as replay:
        checkpoint(model, x, use_reentrant=use_reentrant).sum().backward()
    assert [len(chosen) for chosen in replay.choices.values()] == [1, 1]
    with replay.play(model), pytest.raises(ValueError, match=r"given to checkpoint as context_fn"):
        checkpoint(model, x, use_reentrant=use_reentrant).sum().backward()


def test_recomputation_may_happen_twice() -> None:
    model = network(1)
    x = torch.randn(20, DIM, requires_grad=True)
    y = checkpoint(model, x, use_reentrant=False, context_fn=lambda: RoutingReplay.contexts(model))
    flip(model)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)
    second = torch.autograd.grad(y.sum(), x)
    assert torch.equal(first[0], second[0])
    assert [seen.choice.tolist() for seen in model[0].seen] == [model[0].seen[0].choice.tolist()] * 3


def test_what_does_not_fit_is_named() -> None:
    router = TopKRouter(DIM, EXPERTS, 2)
    x = torch.randn(4, DIM)
    with RoutingReplay.record(router) as replay:
        router(x)
    with replay.play(router), pytest.raises(ValueError, match=r"of shape=\(3, 2\): it must be as recorded, \(4, 2\)"):
        router(x[:3])
    wider = TopKRouter(DIM, EXPERTS, 3)
    with replay.play(wider), pytest.raises(ValueError, match=r"of shape=\(4, 3\): it must be as recorded, \(4, 2\)"):
        wider(x)
    with replay.play(router):
        router(x)
        with pytest.raises(ValueError, match="has run more often than in the record"):
            router(x)
    with pytest.raises(ValueError, match=r"it must be one with the routers of the record, \[''\]"):
        replay.play(network()).__enter__()
    with pytest.raises(ValueError, match="model='Linear': it must be a model with routers"):
        RoutingReplay.record(nn.Linear(2, 2))
