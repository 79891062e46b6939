"""Layers computed again give the same bits, count once and keep less."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from types import ModuleType

import pytest
import torch
from torch import Tensor

from toolkit.attention import blockwise
from toolkit.layers import MoE, auxiliary_losses
from toolkit.layers.experts import cpu
from toolkit.layers.recomputation import layer_policies, recompute_layers
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.routing import update_balancers

POLICIES = ("full", "selective", 2)
ATTENTION = AttentionConfig(heads=4, kv_heads=2, qk_norm=True, sinks=True, dropout_p=0.2)
MOBA = AttentionConfig(heads=2, pattern="MoBA(block=4, top_k=2)")
DENSE, MOE = FeedForwardConfig(24), MoEConfig(8, 4, 2, shared_experts=1, shared_gate=True)
NOISY = MoEConfig(8, 4, 2, router="TopKRouter(noise=NoisyTopK(), losses=[LoadBalancingLoss(0.1)])", capacity_factor=1.0)
BIASED = MoEConfig(8, 4, 2, router="TopKRouter(score='sigmoid', balancer=BiasBalancer())", identity_experts=1)
KINDS = {
    "dense": (BlockConfig(ATTENTION, DENSE), BlockConfig(MOBA, DENSE)),
    "moe": (BlockConfig(ATTENTION, MOE), BlockConfig(MOBA, NOISY)),
    "biased": (BlockConfig(ATTENTION, BIASED), BlockConfig(ATTENTION, BIASED)),
    "depths": (BlockConfig(ATTENTION, DENSE), BlockConfig(AttentionConfig(heads=2), MOE, depth_capacity=0.5)),
    "soft": (BlockConfig(ATTENTION, MoEConfig(8, 4, 1, router="SoftRouter(slots=2)", causal=False)),) * 2,
}


def decoder(kind: str) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig(32, 16, KINDS[kind])).double()


def step(model: Decoder, seed: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and gradients by name."""
    torch.manual_seed(seed)
    tokens = torch.randint(32, (2, 12))
    loss = model(tokens).logits.square().mean() + sum(auxiliary_losses(model).values())
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_and_its_gradients_are_the_same_bits(kind: str, policy: str | int) -> None:
    """Of dropout, noise, capacity, choice by content and losses on the layers' output alike."""
    plain, again = decoder(kind), decoder(kind)
    recompute_layers(again, policy)
    for seed in (1, 2):
        (loss, gradients), (loss_again, gradients_again) = step(plain, seed), step(again, seed)
        assert torch.equal(loss, loss_again)
        assert gradients.keys() == gradients_again.keys()
        for name, gradient in gradients.items():
            assert torch.equal(gradient, gradients_again[name]), name


@pytest.mark.parametrize("policy", POLICIES)
def test_tokens_are_counted_once_and_biases_move_alike(policy: str | int) -> None:
    plain, again = decoder("biased"), decoder("biased")
    recompute_layers(again, policy)
    for model in (plain, again):
        step(model)
        update_balancers(model)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["moe", "depths"])
def test_a_rerun_leaves_what_the_first_forward_showed(kind: str) -> None:
    """Else the rerun's graph, of a whole layer, would outlive its backward pass."""
    model = decoder(kind)
    recompute_layers(model, "full")
    logits = model(torch.randint(32, (2, 12))).logits
    layers = [part for part in model.modules() if isinstance(part, MoE)]
    shown = [layer.assignment for layer in layers]
    logits.sum().backward()
    assert all(layer.assignment is first for layer, first in zip(layers, shown, strict=True))


def test_selective_runs_products_no_second_time_and_full_does(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Counter[str]()

    def counted(module: ModuleType) -> None:
        plain = module.forward
        monkeypatch.setattr(module, "forward", lambda *args: (runs.update([module.__name__]), plain(*args))[1])

    counted(blockwise)
    counted(cpu)
    found = {}
    for policy in ("none", "selective", "full"):
        model = decoder("biased")
        recompute_layers(model, policy)
        logits = model(torch.randint(32, (2, 12))).logits
        runs.clear()
        logits.sum().backward()
        found[policy] = dict(runs)
    assert found["none"] == found["selective"] == {}
    assert found["full"] == {blockwise.__name__: 2, cpu.__name__: 2}


def test_none_undoes_the_others_and_copies_are_computed_again_by_themselves() -> None:
    model = decoder("dense")
    recompute_layers(model, "full")
    copy = deepcopy(model)
    with torch.no_grad():
        copy.blocks[0].attention.o_proj.zero_()
    assert not torch.equal(step(model)[0], step(copy)[0])
    recompute_layers(model, "none")
    assert all("forward" not in block.__dict__ for block in model.blocks)


def test_every_kth_layer_is_the_last_of_k() -> None:
    assert layer_policies(1, 3) == ["full"] * 3
    assert layer_policies(3, 7) == ["none", "none", "full", "none", "none", "full", "none"]
    assert layer_policies("selective", 2) == ["selective"] * 2


@pytest.mark.parametrize("policy", ["some", 0, -1, True, 1.5])
def test_what_is_no_policy_is_refused(policy: object) -> None:
    with pytest.raises(ValueError, match="recompute=.*: it must be 'none', 'full', 'selective', or k > 0"):
        layer_policies(policy, 2)  # type: ignore[arg-type]
