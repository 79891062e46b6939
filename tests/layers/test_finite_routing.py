"""Where a model's router logits are not finite, and that it is said; what is not a logit of a token is let pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from toolkit.layers import (
    Block,
    FeedForward,
    MixtureOfDepths,
    MoE,
    SelfAttention,
    non_finite_logits,
    require_finite_routing,
)
from toolkit.layers.packed_sequences import Sequences
from toolkit.routing import GaussianNoise, SoftRouter, TopKRouter
from toolkit.routing.finite import DivergedError

DIM, EXPERTS = 8, 4


def moe(**settings: Any) -> MoE:
    return MoE(DIM, 12, EXPERTS, 2, **settings)


def depths() -> MixtureOfDepths:
    return MixtureOfDepths(Block(DIM, SelfAttention(DIM, 2), moe()), DIM, 0.5)


def stack() -> nn.Sequential:
    return nn.Sequential(moe(), FeedForward(DIM, 12), depths(), moe())


PATHS = ["0", "2", "2.block.feed_forward", "3"]


def found(model: nn.Module) -> dict[str, int]:
    return {path: int(count) for path, count in non_finite_logits(model).items()}


def test_finite_logits_pass_layer_by_layer() -> None:
    model = stack()
    model(torch.randn(2, 6, DIM))
    assert found(model) == dict.fromkeys(PATHS, 0)
    require_finite_routing(model, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("path", ["0", "2", "3"])
def test_the_layer_and_the_step_are_named(path: str, bad: float) -> None:
    model = stack()
    model.get_submodule(path).router.weight.data[0] = bad  # one logit of each of 2 * 6 tokens
    for _, layer in model.named_children():
        layer(torch.randn(2, 6, DIM))
    assert found(model)[path] == 12
    with pytest.raises(DivergedError, match=rf"router logits of {path} at step 31='12 infinite or NaN'") as refusal:
        require_finite_routing(model, 31)
    assert refusal.value.step == 31


def test_the_predictor_of_a_depth_router_is_a_router_too() -> None:
    layer = depths()
    layer.router.predictor_down_bias.data.fill_(math.nan)
    layer(torch.randn(2, 6, DIM))
    with pytest.raises(ValueError, match=r"router logits of the model at step 2='12 infinite or NaN'"):
        require_finite_routing(layer, 2)


def test_the_first_of_several_is_named() -> None:
    model = stack()
    for layer in (model[0], model[3]):
        layer.router.weight.data[1] = math.nan
        layer(torch.randn(5, DIM))
    with pytest.raises(ValueError, match=r"router logits of 0 at step 1="):
        require_finite_routing(model, 1)


def test_what_noise_made_of_them_counts_though_they_were_finite() -> None:
    layer = moe(router=TopKRouter(DIM, EXPERTS, 2, noise=GaussianNoise(1.0)))
    layer.router.noise.std = math.inf
    layer(torch.randn(5, DIM))
    assert layer.assignment.logits.isfinite().all()
    with pytest.raises(ValueError, match="at step 1="):
        require_finite_routing(layer, 1)
    layer.eval()(torch.randn(5, DIM))
    require_finite_routing(layer, 2)


def test_soft_routers_are_looked_at_too() -> None:
    layer = moe(router=SoftRouter(DIM, EXPERTS, 3))
    layer(torch.randn(5, DIM))
    require_finite_routing(layer, 1)
    layer.router.scale.data.fill_(math.inf)
    layer(torch.randn(5, DIM))
    with pytest.raises(ValueError, match="at step 1="):
        require_finite_routing(layer, 1)


def test_padding_layers_that_have_not_run_and_models_without_routers_pass() -> None:
    model, x, valid = stack(), torch.randn(3, DIM), torch.tensor([True, False, True])
    x[1] = math.nan
    model[0](x, valid=valid)  # the others have not run
    assert found(model) == dict.fromkeys(PATHS, 0)
    require_finite_routing(model, 1)
    require_finite_routing(nn.Linear(2, 2), 1)


def test_padding_of_a_layer_in_depth_passes_too() -> None:
    layer, x = depths(), torch.randn(2, 6, DIM)
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    x[~valid] = math.nan
    layer(x, sequences=Sequences.of(valid=valid))
    assert found(layer)[""] == 0
    layer.router.predictor_down_bias.data.fill_(math.nan)
    layer(x, sequences=Sequences.of(valid=valid))
    assert found(layer)[""] == 10


def test_counts_of_several_forwards_may_be_given() -> None:
    model = stack()
    model(torch.randn(2, 6, DIM))
    counts = non_finite_logits(model)
    with pytest.raises(ValueError, match=r"router logits of 3 at step 4='5 infinite or NaN'"):
        require_finite_routing(model, 4, {**counts, "3": counts["3"] + 5})


class Waits(TorchDispatchMode):
    """Counts reads of a single number, each of which would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


def test_no_layer_is_waited_for_by_itself() -> None:
    model = stack()
    model(torch.randn(2, 6, DIM))
    with Waits() as waits:
        non_finite_logits(model)
        require_finite_routing(model, 1)
        assert waits.count == 0  # the one read of all counts copies a vector
        int(torch.ones(()))
    assert waits.count == 1


def test_gradients_are_as_they_would_be_without_it() -> None:
    def gradient(check: bool) -> Tensor:
        torch.manual_seed(0)
        layer = moe()
        loss = layer(torch.randn(5, DIM)).sum()
        if check:
            require_finite_routing(layer, 1)
        return torch.autograd.grad(loss, layer.router.weight)[0]

    assert torch.equal(gradient(True), gradient(False))
