"""What every router keeps: precision, padding, causality, losses in training only, a graph without breaks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from router_twins import Bias
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit.routing import (
    Assignment,
    GaussianNoise,
    GShardRouter,
    Jitter,
    LoadBalancingLoss,
    NoisyTopK,
    Router,
    RouterZLoss,
    SwitchRouter,
    TopKRouter,
    build_router,
)

DIM, EXPERTS = 16, 8
LIMIT = {"groups": 4, "top_groups": 2}
ROUTERS: dict[str, Callable[[], Router]] = {
    "softmax": lambda: TopKRouter(DIM, EXPERTS, 2),
    "softmax of the chosen, biased": lambda: TopKRouter(DIM, EXPERTS, 4, pre_softmax=False, bias=True),
    "sigmoid in groups, balanced": lambda: TopKRouter(
        DIM, EXPERTS, 3, score="sigmoid", **LIMIT, scale=2.5, balancer=Bias(torch.randn(EXPERTS))
    ),
    "sqrt softplus": lambda: TopKRouter(DIM, EXPERTS, 3, score="sqrt_softplus", normalize=False),
    "noisy top-k": lambda: TopKRouter(DIM, EXPERTS, 2, noise=NoisyTopK(DIM, EXPERTS)),
    "gaussian": lambda: TopKRouter(DIM, EXPERTS, 2, noise=GaussianNoise()),
    "switch, jitter": lambda: SwitchRouter(DIM, EXPERTS),
    "gshard": lambda: GShardRouter(DIM, EXPERTS),
}
every_router = pytest.mark.parametrize("kind", ROUTERS)


def same(a: Assignment, b: Assignment) -> bool:
    """The same triples, to the bit."""
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("token", "expert", "weight", "choice"))


@every_router
@pytest.mark.parametrize("training", [True, False])
def test_autocast_changes_nothing(kind: str, training: bool) -> None:
    router = ROUTERS[kind]().train(training)
    x = torch.randn(33, DIM)
    torch.manual_seed(1)
    plain = router(x)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = router(x)
    assert cast.logits.dtype == cast.weight.dtype == cast.probabilities.dtype == torch.float32
    assert torch.equal(plain.logits, cast.logits)
    assert same(plain, cast)
    assert all(torch.equal(plain.losses[name], cast.losses[name]) for name in plain.losses)


@every_router
def test_a_bf16_model_is_scored_in_fp32(kind: str) -> None:
    router = ROUTERS[kind]().bfloat16().eval()
    x = torch.randn(33, DIM).bfloat16()
    half = router(x)
    assert half.logits.dtype == half.probabilities.dtype == half.weight.dtype == torch.float32
    # An fp32 copy of the same rounded weights, on the same rounded tokens, says the same.
    assert same(half, router.float()(x.float()))


@every_router
def test_fp64_weights_are_scored_in_fp64(kind: str) -> None:
    assignment = ROUTERS[kind]().double()(torch.randn(3, DIM))
    assert assignment.logits.dtype == assignment.weight.dtype == torch.float64


@every_router
def test_padding_is_as_though_it_were_not_there(kind: str) -> None:
    router = ROUTERS[kind]()
    router.noise = None  # draws would fall on other tokens
    if isinstance(router, GShardRouter):
        router.second = "always"
    real, valid = torch.randn(20, DIM), torch.zeros(33, dtype=torch.bool)
    valid[torch.randperm(33)[:20]] = True
    padded = 100 * torch.randn(33, DIM)
    padded[valid] = real
    with_padding, without = router(padded, valid=valid), router(real)
    row = valid[with_padding.token]
    assert torch.equal(with_padding.expert[row], without.expert)
    assert torch.equal(with_padding.weight[row], without.weight)
    assert (with_padding.expert[~row] == -1).all() and (with_padding.choice[~row] == -1).all()
    assert (with_padding.weight[~row] == 0).all()
    assert torch.equal(with_padding.counts(), without.counts())
    assert int(with_padding.dropped) == 0
    assert set(with_padding.losses) == {"balance", "z"}
    for name, loss in without.losses.items():
        torch.testing.assert_close(with_padding.losses[name], loss, rtol=1e-6, atol=0)


@every_router
def test_padding_gets_no_gradient_and_gives_none(kind: str) -> None:
    router = ROUTERS[kind]()
    x, valid = torch.randn(9, DIM, requires_grad=True), torch.arange(9) < 6
    assignment = router(x, valid=valid)
    total = (assignment.weight * torch.randn_like(assignment.weight)).sum() + sum(assignment.losses.values())
    (gradient,) = torch.autograd.grad(total, x)
    assert (gradient[6:] == 0).all()
    if kind != "noisy top-k":  # whose weights start at zero: no gradient reaches its tokens yet
        assert (gradient[:6] != 0).any()


@every_router
def test_a_tokens_experts_depend_on_that_token_alone(kind: str) -> None:
    router = ROUTERS[kind]()
    assert router.causal == "always"
    x = torch.randn(9, DIM)
    changed = torch.cat([x[:5], torch.randn(4, DIM)])
    torch.manual_seed(1)
    before = router(x)
    torch.manual_seed(1)
    after = router(changed)
    early = before.token < 5
    assert torch.equal(before.choice[early], after.choice[early])
    assert torch.equal(before.weight[early], after.weight[early])
    router.eval()
    assert torch.equal(router(x).expert[early], router(x[:5]).expert)


@every_router
@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_to_one_graph_that_says_the_same(kind: str, training: bool) -> None:
    torch.compiler.reset()
    router = ROUTERS[kind]().train(training)
    if isinstance(router, TopKRouter) and router.balancer is not None:
        router.balancer.observe = lambda assignment: None  # type: ignore[method-assign]  # a list is no graph
    x, valid = torch.randn(33, DIM), torch.arange(33) < 30

    def run(x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        assignment = router(x, valid=valid)
        return assignment.expert, assignment.weight, assignment.losses

    torch.manual_seed(1)
    expert, weight, losses = run(x)
    torch.manual_seed(1)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(compiled[0], expert)
    torch.testing.assert_close(compiled[1], weight)
    assert set(compiled[2]) == set(losses)
    for name in losses:
        torch.testing.assert_close(compiled[2][name], losses[name])


@every_router
def test_shapes_are_the_same_whatever_the_tokens(kind: str) -> None:
    router = ROUTERS[kind]()
    sizes = {router(scale * torch.randn(33, DIM)).token.shape for scale in (0.0, 1.0, 100.0)}
    assert sizes == {(33 * router.top_k,)}


@every_router
@pytest.mark.parametrize("tokens", [0, 1])
def test_no_token_and_one_token(kind: str, tokens: int) -> None:
    router = ROUTERS[kind]()
    assignment = router(torch.randn(tokens, DIM))
    assert assignment.token.shape == assignment.expert.shape == assignment.weight.shape == (tokens * router.top_k,)
    assert assignment.tokens == tokens
    assert all(loss.isfinite() for loss in assignment.losses.values())


@every_router
def test_work_is_the_products_that_training_runs(kind: str) -> None:
    router = ROUTERS[kind]()
    router.losses = nn.ModuleList()  # the balance loss's dot product is none of a layer's products
    with FlopCounterMode(display=False) as counter:
        router(torch.randn(9, DIM))
    work = router.work(9)
    assert {part.kind for part in work} == {"router"}
    assert counter.get_total_flops() == 2 * sum(part.needed for part in work)


@every_router
def test_a_checkpoint_round_trip_routes_alike(kind: str) -> None:
    router, other = ROUTERS[kind]().eval(), ROUTERS[kind]().eval()
    other.load_state_dict(router.state_dict())
    x = torch.randn(33, DIM)
    assert same(router(x), other(x))


def test_losses_are_there_in_training_by_name_and_absent_in_evaluation() -> None:
    router = TopKRouter(6, 4, 2)
    x = torch.randn(9, 6)
    assignment = router(x)
    assert set(assignment.losses) == {"balance", "z"}
    assert torch.equal(assignment.losses["balance"], LoadBalancingLoss(0.01)(assignment))
    assert torch.equal(assignment.losses["z"], RouterZLoss(0.001)(assignment))
    for loss in assignment.losses.values():
        (gradient,) = torch.autograd.grad(loss, router.weight, retain_graph=True)
        assert (gradient != 0).any()
    assert router.eval()(x).losses == {}
    assert TopKRouter(6, 4, 2, losses=[])(x).losses == {}


def test_losses_and_observers_see_sequences_padding_and_noise() -> None:
    seen: list[Assignment] = []

    class Spy(nn.Module):
        name = "spy"

        def forward(self, assignment: Assignment) -> Tensor:
            seen.append(assignment)
            return assignment.weight.sum()

    router = TopKRouter(DIM, EXPERTS, 2, noise=Jitter(0.1), losses=[Spy()])
    x, valid, ids = torch.randn(4, DIM), torch.tensor([True, True, True, False]), torch.tensor([0, 0, 1, 1])
    assignment = router(x, valid=valid, sequence_ids=ids)
    assert set(assignment.losses) == {"spy"}
    (given,) = seen
    assert given.valid is valid and given.sequence_ids is ids
    assert given.noisy_logits is not None
    assert same(given, assignment)


def test_two_losses_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"losses=\['z', 'z'\]: it must be of different names"):
        TopKRouter(6, 4, 2, losses=[RouterZLoss(), RouterZLoss(0.1)])


@pytest.mark.parametrize("name", ["token_ids", "sequence_ids", "valid"])
def test_a_keyword_of_another_length_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}.shape=\(3,\): it must be \(tokens,\) = \(4,\)"):
        TopKRouter(6, 4, 2)(torch.randn(4, 6), **{name: torch.ones(3, dtype=torch.int64)})


@pytest.mark.parametrize(("dim", "num_experts", "name"), [(0, 4, "dim"), (6, 0, "num_experts")])
def test_a_size_that_is_not_positive_is_refused(dim: int, num_experts: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0: it must be positive"):
        TopKRouter(dim, num_experts, 1)


def test_at_the_start_logits_of_normalised_tokens_have_unit_variance() -> None:
    router = TopKRouter(256, 64, 2)
    x = nn.functional.rms_norm(torch.randn(512, 256), (256,))
    assert float(router(x).logits.detach().std()) == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize(
    "text",
    [
        "TopKRouter(balancer=BiasBalancer(), bias=True, noise=NoisyTopK())",
        "TopKRouter(balancer=QuantileBalancer())",
        "ExpertChoiceRouter()",
        "HashRouter(dim=16)",
        "HashRouter(dim=None, table='balanced', frequencies=[3, 1, 4, 1, 5])",
        "SinkhornRouter()",
        "SoftRouter(slots=2)",
    ],
)
def test_reset_parameters_gives_what_a_new_router_has_whatever_memory_held(text: str) -> None:
    def new() -> nn.Module:
        return build_router(text, dim=16, num_experts=8, top_k=2, vocab_size=5)

    torch.manual_seed(0)
    fresh = new()
    with torch.device("meta"):
        router = new()
    router.to_empty(device="cpu")
    for tensor in (*router.parameters(), *router.buffers()):
        tensor.data.fill_(7)
    torch.manual_seed(0)
    for module in router.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name, value in fresh.state_dict().items():
        if "weight" in name:  # drawn in another order where parts are many
            assert not torch.equal(router.state_dict()[name], torch.full_like(value, 7))
        else:
            assert torch.equal(router.state_dict()[name], value), name
