"""Which parameters decay, and that AdamW has each of them once."""

from __future__ import annotations

import pytest
import torch

from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.training import TrainingConfig, build_optimizer

DENSE = BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(24))
MOE = BlockConfig(AttentionConfig(heads=2), MoEConfig(8, 4, 2, shared_experts=1))
CONFIG = TrainingConfig(steps=1, weight_decay=0.3, learning_rate=0.01)


def decoder(tied_head: bool) -> Decoder:
    return Decoder(DecoderConfig(vocab_size=50, dim=16, blocks=(DENSE, MOE), tied_head=tied_head))


@pytest.mark.parametrize("tied_head", [True, False])
def test_every_parameter_is_in_one_group(tied_head: bool) -> None:
    model = decoder(tied_head)
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
    assert free == {"embedding.weight"} | norms
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
