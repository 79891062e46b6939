"""For every way to route: what is counted is what a run computes, or bounds it, and the count says which."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from compute_cases import DIM, VOCAB, decoder_config

from toolkit.compute import Cost, cost, measure
from toolkit.layers import MoE
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, MoEConfig
from toolkit.routing import Assignment, Balancer

HIDDEN, EXPERTS = 12, 5
EXPERT = 3 * DIM * HIDDEN
"""Multiply-adds of one row of an expert."""

ATTENTION = AttentionConfig(heads=2, pattern="Full()")
LENGTHS = (2, 7, 20, 33)  # of one token a soft router's mean is no product
CHOICE = "ExpertChoiceRouter(capacity_factor={}, evaluation='choice')"


def routed(router: str | None = None, top_k: int = 2, **settings: object) -> MoEConfig:
    return MoEConfig(HIDDEN, EXPERTS, top_k, router=router, causal=False, **settings)  # type: ignore[arg-type]


def decoder(moe: MoEConfig, depth_capacity: float | None = None) -> DecoderConfig:
    return decoder_config(BlockConfig(replace(ATTENTION, pattern="Causal()"), moe, depth_capacity))


EXACT = {
    "top_k": routed(),
    "top_1": routed(top_k=1),
    "every_expert": routed(top_k=EXPERTS),
    "no_losses": routed("TopKRouter(losses=[])"),
    "sigmoid": routed("TopKRouter(score='sigmoid', balancer=BiasBalancer())"),
    "sqrt_softplus": routed("TopKRouter(score='sqrt_softplus', bias=True)"),
    "after_softmax": routed("TopKRouter(pre_softmax=False, balancer=QuantileBalancer(score='logits'))"),
    "gaussian": routed("TopKRouter(noise=GaussianNoise())"),
    "noisy": routed("TopKRouter(noise=NoisyTopK())"),
    "noisy_with_its_losses": routed("TopKRouter(noise=NoisyTopK(), losses=[ImportanceLoss(), LoadLoss()])"),
    "jitter": routed("TopKRouter(noise=Jitter())"),
    "jitter_without_z_loss": routed("TopKRouter(noise=Jitter(), losses=[LoadBalancingLoss()])"),
    "switch": routed("SwitchRouter()", top_k=1),
    "switch_without_jitter": routed("SwitchRouter(jitter=0)", top_k=1),
    "gshard_always": routed("GShardRouter(second='always')"),
    "expert_choice": routed(CHOICE.format(2.0)),
    "expert_choice_of_few": routed(CHOICE.format(0.3)),
    "expert_choice_beside_none": routed(CHOICE.format(1.5), identity_experts=2, constant_experts=1),
    "sinkhorn": routed("SinkhornRouter(top_k=1)", top_k=1),
    "sinkhorn_2": routed("SinkhornRouter()"),
    "hash": routed("HashRouter()"),
    "hash_with_a_gate": routed(f"HashRouter(dim={DIM})"),
    "random": routed("RandomRouter()"),
    "uniform": routed("UniformRouter()"),
    "soft": routed("SoftRouter(slots=3)"),
    "shared": routed(shared_experts=2, shared_gate=True),
}

BOUND = {
    "gshard": routed("GShardRouter()"),
    "gshard_with_noise": routed("GShardRouter(noise=NoisyTopK())"),
    "capacity": routed(capacity_factor=1.0),
    "low_capacity": routed(capacity_factor=0.5, drop_policy="position"),
    "capacity_of_sequences": routed(adjust=("Capacity(0.7, per='sequence', min_capacity=2)",)),
    "capacity_in_evaluation": routed(adjust=("Capacity(0.5, evaluation_factor=0.75)",)),
    "gshard_with_capacity": routed("GShardRouter()", capacity_factor=1.25),
}

BALANCED = {
    "without_computation": routed(identity_experts=3),
    "at_a_target": routed(
        f"TopKRouter(balancer=BiasBalancer(target={[0.15] * EXPERTS + [0] * 3}))", identity_experts=3
    ),
    "rounded": routed(adjust=("TokenRounding(4)",)),
    "gshard_without_computation": routed("GShardRouter()", zero_experts=2),
}


def rows_of_a_training_forward(config: DecoderConfig, seq_len: int, batch_size: int = 3) -> int:
    """(token, expert) pairs, or slots, that the routed experts of one MoE are given."""
    torch.manual_seed(0)
    model = Decoder(config)
    (moe,) = (module for module in model.modules() if isinstance(module, MoE))
    seen: list[int] = []

    def count(experts: object, given: tuple[object, ...]) -> None:
        _, assignment = given
        seen.append(int((assignment.expert >= 0).sum()))  # type: ignore[attr-defined]

    moe.experts.register_forward_pre_hook(count)
    model(torch.randint(VOCAB, (batch_size, seq_len)))
    return seen[0]


def counted_rows(price: Cost, phase: str) -> float:
    parts = [part for part in price.work if part.kind == "experts" and part.phase in ("both", phase)]
    return sum(part.needed for part in parts) / EXPERT


@pytest.mark.parametrize("seq_len", LENGTHS)
@pytest.mark.parametrize("moe", EXACT.values(), ids=EXACT)
def test_what_is_counted_is_what_is_run(moe: MoEConfig, seq_len: int) -> None:
    price, measured = cost(decoder(moe), seq_len), measure(Decoder(decoder(moe)), seq_len, batch_size=2)
    assert price.training_flops["exact"] == pytest.approx(measured.training_flops, rel=1e-12)
    assert price.forward_flops["exact"] == pytest.approx(measured.forward_flops, rel=1e-12)


@pytest.mark.parametrize("seq_len", LENGTHS)
@pytest.mark.parametrize("capacity_factor", [0.5, 1.3, 2.0])
def test_expert_choice_that_evaluates_by_a_threshold_is_counted_in_training(
    capacity_factor: float, seq_len: int
) -> None:
    config = decoder(routed(f"ExpertChoiceRouter(capacity_factor={capacity_factor})"))
    assert cost(config, seq_len).certainty == "exact"
    measured = measure(Decoder(config), seq_len, batch_size=2)
    assert cost(config, seq_len).training_flops["exact"] == pytest.approx(measured.training_flops, rel=1e-12)


@pytest.mark.parametrize("seq_len", LENGTHS)
@pytest.mark.parametrize("moe", BOUND.values(), ids=BOUND)
def test_what_is_run_is_at_most_the_bound(moe: MoEConfig, seq_len: int) -> None:
    price, measured = cost(decoder(moe), seq_len), measure(Decoder(decoder(moe)), seq_len, batch_size=3)
    assert measured.training_flops <= price.training_flops["exact"] * (1 + 1e-12)
    assert measured.forward_flops <= price.forward_flops["exact"] * (1 + 1e-12)


@pytest.mark.parametrize("name", ["gshard", "gshard_with_noise", "capacity", "low_capacity", "capacity_of_sequences"])
def test_a_bound_is_one_of_training_alone(name: str) -> None:
    price, measured = cost(decoder(BOUND[name]), 33), measure(Decoder(decoder(BOUND[name])), 33)
    assert measured.training_flops < price.training_flops["exact"]
    assert measured.forward_flops == pytest.approx(price.forward_flops["exact"], rel=1e-12)


@pytest.mark.parametrize("seq_len", LENGTHS)
@pytest.mark.parametrize("moe", [*EXACT.values(), *BOUND.values()], ids=[*EXACT, *BOUND])
def test_rows_are_those_that_the_experts_get(moe: MoEConfig, seq_len: int) -> None:
    price, run = cost(decoder(moe), seq_len), rows_of_a_training_forward(decoder(moe), seq_len)
    rows = counted_rows(price, "training")
    assert run <= 3 * rows
    assert run == 3 * rows or price.certainty == "bound"


@pytest.mark.parametrize("seq_len", LENGTHS)
@pytest.mark.parametrize("name", sorted({*EXACT, *BOUND, *BALANCED} - {"soft"}))
def test_triples_are_those_of_the_assignment(name: str, seq_len: int) -> None:
    model = Decoder(decoder({**EXACT, **BOUND, **BALANCED}[name]))
    (moe,) = (module for module in model.modules() if isinstance(module, MoE))
    model(torch.randint(VOCAB, (3, seq_len)))
    assert isinstance(moe.assignment, Assignment)
    assert moe.triples(3, seq_len) == len(moe.assignment.token)


@pytest.mark.parametrize(("certainty", "cases"), [("exact", EXACT), ("bound", BOUND), ("balanced", BALANCED)], ids=str)
def test_a_cost_says_how_certain_it_is(certainty: str, cases: dict[str, MoEConfig]) -> None:
    found = {name: cost(decoder(moe), 20).certainty for name, moe in cases.items()}
    assert found == dict.fromkeys(cases, certainty)


def test_the_least_certain_layer_decides() -> None:
    blocks = [BlockConfig(ATTENTION, moe) for moe in (EXACT["top_k"], BALANCED["rounded"], BOUND["gshard"])]
    assert [cost(decoder_config(*blocks[:n]), 8).certainty for n in (1, 2, 3)] == ["exact", "balanced", "balanced"]
    assert cost(decoder_config(blocks[0], blocks[2]), 8).certainty == "bound"


@pytest.mark.parametrize(("wanted", "share"), [(None, 5 / 8), (0.15, 5 * 0.15), (0.05, 5 * 0.05)])
def test_experts_without_computation_take_what_the_target_leaves(wanted: float | None, share: float) -> None:
    target = f"target={[wanted] * EXPERTS + [0] * 3}" if wanted else ""
    moe = routed(f"TopKRouter(balancer=BiasBalancer({target}))", identity_experts=3)
    assert counted_rows(cost(decoder(moe), 400), "training") == pytest.approx(400 * 2 * share)


def test_a_run_at_balance_has_the_balanced_count() -> None:
    # Each of 8 tokens' two choices in turn: of every 8 choices in a row 5 are of experts that compute.
    moe = routed("UniformRouter()", identity_experts=3)
    assert rows_of_a_training_forward(decoder(moe), 8, batch_size=1) == counted_rows(cost(decoder(moe), 8), "training")


@pytest.mark.parametrize("seq_len", LENGTHS)
def test_noise_is_training_s_alone(seq_len: int) -> None:
    plain, noisy = (cost(decoder(EXACT[name]), seq_len) for name in ("top_k", "noisy"))
    assert noisy.forward_flops["exact"] == plain.forward_flops["exact"]
    more = noisy.training_flops["exact"] - plain.training_flops["exact"]
    assert more == pytest.approx(3 * 2 * DIM * EXPERTS)  # one more product of the router's size, and its two backward


def test_what_capacity_drops_is_not_training_s() -> None:
    half, whole = (cost(decoder(routed(capacity_factor=factor)), 20) for factor in (0.5, 1.0))
    assert half.forward_flops == {**whole.forward_flops, "palm": half.forward_flops["palm"]}
    assert [counted_rows(price, "training") for price in (half, whole)] == [20, 40]
    assert [counted_rows(price, "evaluation") for price in (half, whole)] == [40, 40]
    dropped = whole.training_flops["exact"] - half.training_flops["exact"]
    assert 20 * dropped == pytest.approx(3 * 2 * 20 * EXPERT)


@pytest.mark.parametrize("seq_len", [4, 13])
def test_a_layer_of_few_tokens_routes_those(seq_len: int) -> None:
    for name in ("top_k", "expert_choice", "soft"):
        config = decoder(EXACT[name], depth_capacity=0.3)
        measured = measure(Decoder(config), seq_len)
        assert cost(config, seq_len).training_flops["exact"] == pytest.approx(measured.training_flops, rel=1e-12)


@pytest.mark.parametrize("seq_len", LENGTHS)
@pytest.mark.parametrize("capacity_factor", [0.3, 1.0, 1.7, 5.0])
def test_active_parameters_are_of_as_many_experts_as_there_are_rows(capacity_factor: float, seq_len: int) -> None:
    config = decoder(routed(CHOICE.format(capacity_factor)))
    rows = rows_of_a_training_forward(config, seq_len, batch_size=1)
    active = cost(config, seq_len).active_parameters["experts"]
    assert active == pytest.approx(rows / seq_len * EXPERT, abs=0.5)


def test_active_parameters_of_a_layer_of_few_tokens_are_of_the_rows_of_those() -> None:
    config = decoder(routed(CHOICE.format(1.0)), depth_capacity=0.25)
    few = cost(decoder(routed(CHOICE.format(1.0))), 7)  # ceil(0.25 * 26)
    price = cost(config, 26)
    assert counted_rows(price, "training") == counted_rows(few, "training") == 10
    assert price.active_parameters["experts"] == pytest.approx(10 / 26 * EXPERT, abs=1)


def test_the_layer_with_all_experts_is_all_active() -> None:
    for moe in (routed(top_k=EXPERTS), routed("SoftRouter(slots=1)")):
        price = cost(decoder(moe), 30)
        assert price.active_parameters == price.parameters


@pytest.mark.parametrize("moe", [BALANCED["at_a_target"], BOUND["gshard_with_noise"], routed("ExpertChoiceRouter()")])
def test_measuring_moves_no_router_and_no_generator(moe: MoEConfig) -> None:
    model = Decoder(decoder(moe)).eval()
    (layer,) = (module for module in model.modules() if isinstance(module, MoE))
    buffers = {name: value.clone() for name, value in model.state_dict().items()}
    pending = [module.pending.clone() for module in model.modules() if isinstance(module, Balancer)]
    random = torch.get_rng_state()
    assert measure(model, 20) == measure(model, 20)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, buffers[name]) for name, value in model.state_dict().items())
    left = [module.pending for module in model.modules() if isinstance(module, Balancer)]
    assert all(torch.equal(one, other) for one, other in zip(left, pending, strict=True))
    assert not layer.has_run and not model.training
