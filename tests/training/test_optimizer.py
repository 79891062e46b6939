"""Which parameters decay, at which rate each is learned, and that AdamW has each of them once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.models.mup import learning_rate_factors
from toolkit.training import TrainingConfig, build_optimizer, training_loss

DENSE = BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(24))
MOE = BlockConfig(AttentionConfig(heads=2), MoEConfig(8, 4, 2, shared_experts=1))
CONFIG = TrainingConfig(steps=1, weight_decay=0.3, learning_rate=0.01)


def decoder(tied_head: bool, mup_base_dim: int | None = None) -> Decoder:
    torch.manual_seed(0)
    blocks = (DENSE, MOE)
    return Decoder(DecoderConfig(vocab_size=50, dim=16, blocks=blocks, tied_head=tied_head, mup_base_dim=mup_base_dim))


@pytest.mark.parametrize("mup_base_dim", [None, 4])
@pytest.mark.parametrize("tied_head", [True, False])
def test_every_parameter_is_in_one_group(tied_head: bool, mup_base_dim: int | None) -> None:
    model = decoder(tied_head, mup_base_dim)
    groups = build_optimizer(model, CONFIG).param_groups
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("tied_head", [True, False])
def test_the_matrices_inside_the_layers_decay_and_no_others(tied_head: bool) -> None:
    model = decoder(tied_head)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {
        names[id(parameter)]: group["weight_decay"]
        for group in build_optimizer(model, CONFIG).param_groups
        for parameter in group["params"]
    }
    free = {name for name, share in decay.items() if share == 0}
    norms = {name for name in decay if name.endswith("norm.weight")}
    assert free == {"embedding.weight"} | norms | (set() if tied_head else {"head.weight"})
    assert {share for name, share in decay.items() if name not in free} == {0.3}
    router = next(name for name in decay if "router" in name)
    assert decay[router] == 0.3


def test_one_step_is_adamw_s_by_hand() -> None:
    model = decoder(tied_head=True)
    config = TrainingConfig(steps=1, weight_decay=0.3, learning_rate=0.01, beta1=0.8, beta2=0.9, eps=0.1)
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    for name, parameter in model.named_parameters():
        decay = 0.3 if parameter.ndim >= 2 and name != "embedding.weight" else 0.0
        assert parameter.grad is not None
        # after one step the corrected moments are the gradient and its square, whatever the betas
        expected = before[name] * (1 - 0.01 * decay) - 0.01 * parameter.grad / (parameter.grad.abs() + 0.1)
        torch.testing.assert_close(parameter.detach(), expected)
    second = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.zero_grad()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # with no gradient the moments shrink by beta1 and beta2, corrected by what they could have reached
    name, parameter = "norm.weight", model.norm.weight
    first = (second[name] - before[name]) / -0.01  # g / (|g| + eps)
    gradient = first * 0.1 / (1 - first.abs())
    mean, square = gradient * 0.2 * 0.8 / (1 - 0.8**2), gradient.square() * 0.1 * 0.9 / (1 - 0.9**2)
    torch.testing.assert_close(
        parameter.detach(), second[name] - 0.01 * mean / (square.sqrt() + 0.1), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("within", [False, True], ids=["a decoder", "one in another module"])
@pytest.mark.parametrize("mup_base_dim", [4, 64])
def test_with_mup_a_parameter_s_rate_is_times_its_factor(mup_base_dim: int, within: bool) -> None:
    model = decoder(tied_head=False, mup_base_dim=mup_base_dim)
    optimizer = build_optimizer(nn.ModuleList([model]) if within else model, CONFIG)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, factor in learning_rate_factors(model, model.config).items():
        assert rates[id(model.get_parameter(name))] == pytest.approx(0.01 * factor), name
    assert set(rates.values()) == {0.01, 0.01 * mup_base_dim / 16}
    assert optimizer.param_groups[0]["lr"] == 0.01  # the one that is logged


def test_with_mup_a_step_without_gradient_decays_matrices_by_their_own_rate() -> None:
    model = decoder(tied_head=True, mup_base_dim=4)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, CONFIG)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1 - 0.3 * 0.01 * 4 / 16 if parameter.ndim >= 2 and name != "embedding.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * kept, rtol=1e-7, atol=0)


def test_the_schedule_multiplies_every_group_s_rate() -> None:
    optimizer = build_optimizer(decoder(tied_head=True, mup_base_dim=4), CONFIG)
    at_first = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(4):
        now = [group["lr"] for group in optimizer.param_groups]
        assert now == pytest.approx([rate / (1 + step) for rate in at_first])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("tied_head", [True, False])
def test_at_mup_s_base_width_steps_are_those_of_the_standard_model_bit_for_bit(tied_head: bool) -> None:
    models = [decoder(tied_head, mup_base_dim) for mup_base_dim in (16, None)]
    windows = torch.randint(50, (2, 9))
    for model in models:
        optimizer = build_optimizer(model, CONFIG)
        for _ in range(3):
            optimizer.zero_grad()
            training_loss(model, windows)[0].backward()
            optimizer.step()
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs), name
