"""The MoE layer: dense in its degenerate cases, equivariant, blind to padding, honest about what it drops."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from toolkit.layers import FeedForward, MoE, SwiGLU, auxiliary_losses
from toolkit.layers.experts import ACTIVATIONS
from toolkit.routing import Assignment, RoutingReplay, RoutingStats

BACKENDS = ["reference", "cpu"]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def dense_twin(moe: MoE, expert: int = 0) -> FeedForward:
    """The dense layer that one expert of ``moe`` is."""
    _, dim, hidden_dim = moe.experts.down_proj.shape
    state = moe.experts.state_dict()
    twin = FeedForward(dim, hidden_dim, moe.experts.activation, bias="down_proj_bias" in state)
    twin.to(moe.experts.down_proj.dtype).load_state_dict({name: weight[expert] for name, weight in state.items()})
    return twin


def with_biases(moe: MoE) -> MoE:
    """Biases away from zero, so that a lost one is seen."""
    for name, parameter in moe.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return moe


@every_backend
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_expert_is_the_dense_layer_in_value_and_gradient(backend: str, activation: str) -> None:
    moe = with_biases(MoE(8, 12, 1, 1, backend=backend, activation=activation, bias=True).double())
    twin = dense_twin(moe)
    x = torch.randn(2, 7, 8, dtype=torch.float64, requires_grad=True)
    d_out = torch.randn(2, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(moe(x), twin(x), rtol=0, atol=1e-12)
    mine = torch.autograd.grad(moe(x), (x, *moe.experts.parameters()), d_out)
    theirs = torch.autograd.grad(twin(x), (x, *twin.parameters()), d_out)
    for ours, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours.view_as(expected), expected, rtol=0, atol=1e-12)


@every_backend
@pytest.mark.parametrize("top_k", [2, 5])
def test_identical_experts_with_normalised_gates_are_the_dense_layer(backend: str, top_k: int) -> None:
    moe = MoE(8, 12, num_experts=5, top_k=top_k, backend=backend).double()
    with torch.no_grad():
        for weight in moe.experts.parameters():
            weight.copy_(weight[:1].expand_as(weight))
    x = torch.randn(9, 8, dtype=torch.float64)
    torch.testing.assert_close(moe(x), dense_twin(moe)(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shared_experts", [1, 2])
@pytest.mark.parametrize("gated", [False, True])
def test_shared_experts_are_added_and_stand_as_one_wide_layer(shared_experts: int, gated: bool) -> None:
    moe = MoE(8, 12, 4, 2, shared_experts=shared_experts, shared_gate=gated).double()
    assert moe.shared is not None
    x = torch.randn(9, 8, dtype=torch.float64)
    whole = moe(x)
    # Each shared expert by itself: the k-th slice of the gate's rows, of the up's and of down's columns.
    gate, up = moe.shared.gate_up_proj.chunk(2)
    factor = torch.sigmoid(x @ moe.shared_gate.weight.T) if moe.shared_gate is not None else 1.0
    for k in range(shared_experts):
        rows = slice(12 * k, 12 * (k + 1))
        one = SwiGLU(8, 12).double()
        one.load_state_dict(
            {"gate_up_proj": torch.cat([gate[rows], up[rows]]), "down_proj": moe.shared.down_proj[:, rows]}
        )
        whole = whole - factor * one(x)
    moe.shared = None
    torch.testing.assert_close(moe(x), whole, rtol=0, atol=1e-13)


@every_backend
def test_permuting_the_tokens_permutes_the_output(backend: str) -> None:
    moe = MoE(8, 12, num_experts=5, top_k=2, backend=backend).double()
    x, order = torch.randn(17, 8, dtype=torch.float64), torch.randperm(17)
    torch.testing.assert_close(moe(x[order]), moe(x)[order], rtol=0, atol=1e-13)
    # And so a token's output is its own, whoever stands beside it.
    torch.testing.assert_close(moe(x[3:4]), moe(x)[3:4], rtol=0, atol=1e-13)
    assert moe(x.view(1, 17, 1, 8)).shape == (1, 17, 1, 8)


@every_backend
def test_relabelling_router_and_experts_together_changes_nothing(backend: str) -> None:
    moe, relabelled = (MoE(8, 12, num_experts=5, top_k=2, backend=backend).double() for _ in range(2))
    order = torch.randperm(5)
    relabelled.load_state_dict({name: weight[order] for name, weight in moe.state_dict().items()})
    x = torch.randn(17, 8, dtype=torch.float64)
    torch.testing.assert_close(relabelled(x), moe(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(relabelled.stats.load, moe.stats.load[order])
    for name, loss in auxiliary_losses(moe).items():
        torch.testing.assert_close(auxiliary_losses(relabelled)[name], loss)


def gradients(moe: MoE, y: Tensor) -> list[Tensor]:
    total = y.square().sum() + 10 * sum(auxiliary_losses(moe).values())
    return list(torch.autograd.grad(total, tuple(moe.parameters())))


@every_backend
@pytest.mark.parametrize("capacity_factor", [None, 0.7])
def test_padding_is_routed_nowhere_and_is_in_no_statistic_or_loss(backend: str, capacity_factor: float | None) -> None:
    moe = MoE(8, 12, 5, 2, backend=backend, capacity_factor=capacity_factor).double()
    lengths = [7, 0, 4]
    valid = torch.arange(7) < torch.tensor(lengths)[:, None]
    x = torch.where(valid[..., None], torch.randn(3, 7, 8, dtype=torch.float64), 1e3)
    padded = moe(x, valid=valid)
    stats, losses, found = moe.stats.pack(), moe.losses, gradients(moe, padded)
    padding = ~valid.flatten()[moe.assignment.token]
    assert (moe.assignment.expert[padding] == -1).all()  # so that nobody computes it
    assert (moe.assignment.choice[padding] == -1).all()
    ids = torch.tensor([n for n, length in enumerate(lengths) for _ in range(length)])
    plain = moe(x[valid], sequence_ids=ids)
    assert (padded[~valid] == 0).all()
    torch.testing.assert_close(padded[valid], plain, rtol=0, atol=1e-13)
    torch.testing.assert_close(stats, moe.stats.pack(), rtol=1e-13, atol=0)
    for name, loss in moe.losses.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-13, atol=0)
    for ours, expected in zip(found, gradients(moe, plain), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("policy", ["probability", "position"])
def test_dropped_tokens_have_a_routed_output_of_zero_and_are_counted(policy: str) -> None:
    moe = MoE(8, 12, 4, 1, capacity_factor=0.5, drop_policy=policy)
    free = MoE(8, 12, 4, 1)
    free.load_state_dict(moe.state_dict())
    x = torch.randn(40, 8)
    y, whole = moe(x), free(x)
    kept = moe.assignment.expert >= 0
    room = -(-40 // 4) // 2  # ceil(0.5 * 40 / 4)
    assert (y[~kept] == 0).all()
    torch.testing.assert_close(y[kept], whole[kept])
    assert (whole != 0).any(-1).all()
    loads = free.stats.counts
    assert moe.stats.dropped == float((loads - loads.clamp(max=room)).sum()) / 40 > 0
    # Losses and statistics are those of what was chosen: dropping hides no imbalance.
    assert torch.equal(moe.stats.counts, loads)
    for name, loss in free.losses.items():
        assert torch.equal(moe.losses[name], loss)
    assert torch.equal(moe.eval()(x), free.eval()(x))  # in evaluation nothing is dropped
    assert moe.stats.dropped == 0


def test_adjustments_are_made_in_order_and_told_whether_it_is_training() -> None:
    seen: list[tuple[str, bool]] = []

    class Noted:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, assignment: Assignment, training: bool) -> Assignment:
            seen.append((self.name, training))
            return assignment

    moe = MoE(8, 12, 4, 2, adjust=(Noted("first"), Noted("second")))
    moe(torch.randn(3, 8))
    moe.eval()(torch.randn(3, 8))
    assert seen == [("first", True), ("second", True), ("first", False), ("second", False)]


def test_a_replay_gives_the_same_experts_and_lets_the_gradient_through() -> None:
    moe = MoE(8, 12, 6, 2)
    x = torch.randn(20, 8)
    with RoutingReplay.record(moe) as replay:
        y = moe(x)
    experts = moe.assignment.expert
    with replay.play(moe):
        torch.testing.assert_close(moe(x), y)
    with torch.no_grad():
        moe.router.weight.normal_()
    moe(x)
    assert not torch.equal(moe.assignment.expert, experts)
    with replay.play(moe):
        y = moe(x)
    assert torch.equal(moe.assignment.expert, experts)
    (gradient,) = torch.autograd.grad(y.square().sum(), moe.router.weight)
    assert (gradient != 0).any(1).all()


def test_the_gradient_reaches_the_router_through_the_output_and_through_the_losses() -> None:
    moe = MoE(8, 12, num_experts=4, top_k=2)
    y = moe(torch.randn(9, 8))
    for scalar in (y.square().sum(), *auxiliary_losses(moe).values()):
        (gradient,) = torch.autograd.grad(scalar, moe.router.weight, retain_graph=True)
        assert (gradient != 0).any()


@pytest.mark.parametrize("backend", ["cpu", "grouped_mm", "reference"])
def test_bf16_autocast_and_bf16_weights_agree_with_fp32(backend: str) -> None:
    moe = MoE(32, 48, num_experts=4, top_k=2, shared_experts=1, shared_gate=True, backend=backend)
    moe = moe.bfloat16().float()  # so that both have the same weights
    x = torch.randn(3, 50, 32).bfloat16().float()
    exact = moe(x)
    losses = auxiliary_losses(moe)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = moe(x)
    assert all(torch.equal(loss, losses[name]) for name, loss in auxiliary_losses(moe).items())  # fp32 either way
    cast.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in moe.parameters())
    half = copy.deepcopy(moe).bfloat16()
    low = half(x.bfloat16())
    assert all(torch.equal(loss, losses[name]) for name, loss in auxiliary_losses(half).items())
    assert cast.dtype == low.dtype == torch.bfloat16
    for other in (cast, low):
        torch.testing.assert_close(other.float(), exact, rtol=0, atol=3e-2 * float(exact.detach().abs().max()))


def test_after_a_forward_it_can_be_copied_and_pickled_and_the_copy_computes_the_same() -> None:
    moe = MoE(8, 12, num_experts=4, top_k=2, shared_experts=1, capacity_factor=1.0)
    x = torch.randn(9, 8)
    y = moe(x)
    for twin in (copy.deepcopy(moe), pickle.loads(pickle.dumps(moe))):
        assert twin.losses == {}
        with pytest.raises(ValueError, match="has not run"):
            _ = twin.stats
        assert torch.equal(twin(x), y)
    assert set(moe.losses) == {"balance", "z"}  # the original keeps its last forward
    y.sum().backward()


def test_its_state_is_its_parameters() -> None:
    moe = MoE(8, 12, num_experts=4, top_k=2, shared_experts=1, shared_gate=True, activation="relu2", bias=True)
    moe(torch.randn(3, 8))
    assert set(moe.state_dict()) == {
        "router.weight",
        *(f"experts.{name}{part}" for name in ("up_proj", "down_proj") for part in ("", "_bias")),
        *(f"shared.{name}{part}" for name in ("up_proj", "down_proj") for part in ("", "_bias")),
        "shared_gate.weight",
    }
    assert set(moe.state_dict()) == {name for name, _ in moe.named_parameters()}


def test_stats_and_the_assignment_are_those_of_the_last_forward() -> None:
    moe = MoE(8, 12, num_experts=4, top_k=2)
    for name in ("stats", "assignment"):
        with pytest.raises(ValueError, match=f"{name}: this MoE has not run yet"):
            getattr(moe, name)
    moe(torch.randn(100, 8))
    x = torch.randn(5, 3, 8)
    moe(x)
    expected = moe.router(x.flatten(0, 1))
    assert torch.equal(moe.stats.pack(), RoutingStats.of(expected).pack())
    assert torch.equal(moe.assignment.expert, expected.expert)
    assert int(moe.stats.counts.sum()) == 5 * 3 * 2
    assert moe.stats.dropped == 0.0
