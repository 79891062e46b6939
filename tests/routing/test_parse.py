"""Routers and adjustments as text: what is understood, what is filled in, what is refused and how."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toolkit import routing
from toolkit.routing import (
    Capacity,
    ExpertChoiceRouter,
    HashRouter,
    LoadBalancingLoss,
    Router,
    RouterZLoss,
    SinkhornRouter,
    SoftRouter,
    TokenRounding,
    TopKRouter,
    build_router,
    parse_adjustment,
    register_router,
)
from toolkit.routing.parse import REGISTERED

SIZES = {"dim": 8, "num_experts": 6, "top_k": 2}


def built(text: str, **sizes: int) -> Router | SoftRouter:
    return build_router(text, **{**SIZES, **sizes})


def test_a_text_is_the_call_it_writes() -> None:
    torch.manual_seed(3)
    text = built("TopKRouter(score='sigmoid', scale=2.5, groups=3, top_groups=2, losses=[LoadBalancingLoss(0.5)])")
    torch.manual_seed(3)
    call = TopKRouter(8, 6, 2, score="sigmoid", scale=2.5, groups=3, top_groups=2, losses=[LoadBalancingLoss(0.5)])
    assert str(text) == str(call)
    x = torch.randn(5, 8)
    assert torch.equal(text(x).weight, call(x).weight)
    assert text(x).losses == call(x).losses


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("TopKRouter()", TopKRouter),
        ("SwitchRouter()", routing.SwitchRouter),
        ("GShardRouter(second='always')", routing.GShardRouter),
        ("ExpertChoiceRouter(evaluation='choice')", ExpertChoiceRouter),
        ("SinkhornRouter(losses=(RouterZLoss(),))", SinkhornRouter),
        ("HashRouter()", HashRouter),
        ("HashRouter(dim=None)", HashRouter),
        ("RandomRouter()", routing.RandomRouter),
        ("UniformRouter()", routing.UniformRouter),
        ("SoftRouter(slots=3)", SoftRouter),
        ("TopKRouter(noise=NoisyTopK())", TopKRouter),
        ("TopKRouter(noise=Jitter(0.01), losses=[])", TopKRouter),
    ],
)
def test_every_router_is_written_with_the_sizes_left_out(text: str, kind: type[nn.Module]) -> None:
    router = built(text, vocab_size=11, top_k=1 if "Switch" in text else 2)
    assert type(router) is kind
    assert router.num_experts == 6
    assignment = router(torch.randn(4, 8), token_ids=torch.arange(4))
    assert assignment.logits.shape[:2] == (4, 6)


def test_every_public_module_and_adjustment_has_a_name_and_bases_have_none() -> None:
    public = {name: value for name, value in vars(routing).items() if name in routing.__all__}
    modules = {name for name, value in public.items() if isinstance(value, type) and issubclass(value, nn.Module)}
    bases = {"Router", "GatedRouter", "FixedRouter", "AuxiliaryLoss", "Balancer"} & modules
    with pytest.raises(ValueError, match="nothing is called Nothing; known are ") as caught:
        built("Nothing()")
    known = str(caught.value).split("known are ")[1].split(";")[0].split(", ")
    assert set(known) == (modules - bases) | {"Capacity", "TokenRounding"}


def test_what_the_text_says_wins_over_the_sizes() -> None:
    assert built("TopKRouter(top_k=3)").top_k == 3
    assert built("TopKRouter(8, 6, 1)").top_k == 1
    assert built("HashRouter(vocab_size=5)", vocab_size=11).table.shape == (5, 2)


def test_parts_are_filled_in_too() -> None:
    router = built("TopKRouter(noise=NoisyTopK())")
    assert [tuple(p.shape) for p in router.noise.parameters()] == [(6, 8)]


def test_losses_may_be_nested_in_lists() -> None:
    router = built("TopKRouter(losses=[LoadBalancingLoss(0.5, over='batch'), RouterZLoss(coefficient=0.25)])")
    balance, z = router.losses
    assert isinstance(balance, LoadBalancingLoss)
    assert (balance.coefficient, balance.over) == (0.5, "batch")
    assert isinstance(z, RouterZLoss)
    assert z.coefficient == 0.25


@pytest.mark.parametrize(
    "adjustment",
    [Capacity(1.25, policy="position", renormalize="after", per="sequence"), Capacity(2), TokenRounding(64)],
)
def test_an_adjustment_is_read_as_it_prints(adjustment: Capacity | TokenRounding) -> None:
    assert parse_adjustment(repr(adjustment)) == adjustment


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid syntax"),
        ("TopKRouter(", "was never closed"),
        ("TopKRouter", "TopKRouter is neither a literal nor a call"),
        ("TopRouter()", "nothing is called TopRouter; known are .*TopKRouter"),
        ("3", "it is no router"),
        ("RouterZLoss()", "it is no router"),
        ("Capacity(1.0)", "it is no router"),
        ("Router()", "nothing is called Router"),
        ("TopKRouter(gate=1)", r"TopKRouter\(dim, num_experts, top_k.*\): got an unexpected keyword argument 'gate'"),
        ("TopKRouter(1, 2, 3, 4, 5)", "too many positional arguments"),
        ("SoftRouter()", "missing 1 required positional argument: 'slots'"),
        ("TopKRouter(top_k=9)", "top_k=9: it must be between 1 and num_experts=6"),
        ("TopKRouter(score='relu')", "score='relu': it must be one of"),
        ("TopKRouter(losses=[open('x')])", "nothing is called open"),
        ("TopKRouter(top_k=__import__('os').getpid())", "is neither a literal nor a call"),
        ("TopKRouter(top_k=1 + 1)", r"1 \+ 1 is neither a literal nor a call"),
        ("TopKRouter(*[1, 2, 3])", "must stand one by one"),
        ("TopKRouter(**{'top_k': 1})", "must stand one by one"),
        ("[TopKRouter()]", "it is no router"),
        ("(" * 300 + ")" * 300, "nested"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_text(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        built(text)
    assert str(caught.value).startswith(f"router={text!r}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RouterZLoss()", "it is no adjustment; it must be one of Capacity, TokenRounding"),
        ("Capacity()", "missing 1 required positional argument: 'factor'"),
        ("Capacity(0)", "factor=0: it must be positive"),
        ("Drop()", "nothing is called Drop"),
    ],
)
def test_what_is_no_adjustment_is_refused_with_the_text(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_adjustment(text)
    assert str(caught.value).startswith(f"adjustment={text!r}: ")


def test_a_hash_router_without_a_vocabulary_says_so() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        built("HashRouter()")


def test_a_router_of_one_s_own_is_known_by_its_name_once_registered() -> None:
    class Mine(TopKRouter):
        pass

    with pytest.raises(ValueError, match="Mine"):
        build_router("Mine()", dim=8, num_experts=4, top_k=2)
    try:
        assert register_router(Mine) is Mine
        assert isinstance(build_router("Mine()", dim=8, num_experts=4, top_k=2), Mine)
    finally:
        REGISTERED.pop("Mine", None)


def test_a_registered_router_is_a_module_with_a_name_of_its_own() -> None:
    with pytest.raises(ValueError, match="kind='TopKRouter': it must be a name of its own"):
        register_router(type("TopKRouter", (TopKRouter,), {}))
    with pytest.raises(ValueError, match="kind=.*: it must be a class of routers"):
        register_router(int)
