"""Every router in a decoder: causal where it says so, the same token by token, its cost what a run counts."""

from __future__ import annotations

import json

import pytest
import torch

from toolkit.compute import cost, measure
from toolkit.layers import auxiliary_losses
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, MoEConfig
from toolkit.routing import Balancer

CAUSAL = {
    "top_k": MoEConfig(12, 4, 2),
    "sigmoid and bias": MoEConfig(
        12, 4, 2, router="TopKRouter(score='sigmoid', balancer=BiasBalancer(rate=0.01), losses=[])"
    ),
    "noisy": MoEConfig(12, 4, 2, router="TopKRouter(noise=NoisyTopK(), losses=[ImportanceLoss(), LoadLoss()])"),
    "quantile": MoEConfig(12, 4, 2, router="TopKRouter(balancer=QuantileBalancer(), losses=[])"),
    "groups": MoEConfig(12, 4, 2, router="TopKRouter(groups=2, top_groups=1)"),
    "switch": MoEConfig(12, 4, 1, router="SwitchRouter()"),
    "gshard": MoEConfig(12, 4, 2, router="GShardRouter()"),
    "expert choice by threshold": MoEConfig(12, 4, 2, router="ExpertChoiceRouter()"),
    "sinkhorn": MoEConfig(12, 4, 1, router="SinkhornRouter(top_k=1)"),
    "hash": MoEConfig(12, 4, 2, router="HashRouter()"),
    "capacity": MoEConfig(12, 4, 2, capacity_factor=0.5),
    "rounding": MoEConfig(12, 4, 2, adjust=("TokenRounding(4)",)),
    "free experts": MoEConfig(12, 4, 2, identity_experts=1, zero_experts=1, constant_experts=1, shared_experts=1),
}
NOT_CAUSAL = {
    "expert choice": MoEConfig(12, 4, 2, router="ExpertChoiceRouter(evaluation='choice')", causal=False),
    "soft": MoEConfig(12, 4, 2, router="SoftRouter(slots=2)", causal=False),
}
LENGTH = 9


def config(moe: MoEConfig, depth_capacity: float | None = None) -> DecoderConfig:
    attention = AttentionConfig(heads=2)
    blocks = BlockConfig(attention, moe), BlockConfig(attention, moe, depth_capacity)
    return DecoderConfig(vocab_size=30, dim=16, blocks=blocks)


def trained(moe: MoEConfig, depth_capacity: float | None = None) -> Decoder:
    """A decoder after one training forward, so that what learns from batches (thresholds) has seen one."""
    torch.manual_seed(0)
    decoder = Decoder(config(moe, depth_capacity)).double()
    decoder(torch.randint(30, (4, LENGTH)))
    return decoder.eval()


def support(decoder: Decoder) -> torch.Tensor:
    """bool (LENGTH, LENGTH): whether the logits at i have a gradient by the embedding of token j."""
    ids = torch.randint(30, (1, LENGTH))
    x = decoder.embedding(ids).detach().requires_grad_()
    decoder.embedding.register_forward_hook(lambda *_: x)
    logits = decoder(ids).logits[0]
    rows = [torch.autograd.grad(logits[i].square().sum(), x, retain_graph=True)[0][0] for i in range(LENGTH)]
    return torch.stack(rows).abs().sum(-1) != 0


@pytest.mark.parametrize("name", CAUSAL)
def test_in_evaluation_no_gradient_comes_from_later_tokens(name: str) -> None:
    reached = support(trained(CAUSAL[name]))
    assert not reached.triu(1).any()
    assert reached.diagonal().all()


def test_nor_with_a_layer_that_only_some_tokens_go_through() -> None:
    assert not support(trained(CAUSAL["top_k"], depth_capacity=0.5)).triu(1).any()


@pytest.mark.parametrize("name", CAUSAL)
def test_a_later_token_changes_nothing_before_it(name: str) -> None:
    # A choice has no gradient, so causality is shown by what is computed as well.
    decoder, ids = trained(CAUSAL[name]), torch.randint(30, (2, LENGTH))
    before = decoder(ids).logits
    for place in (3, LENGTH - 1):
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 1) % 30
        torch.testing.assert_close(decoder(changed).logits[:, :place], before[:, :place], rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_the_others_do_read_ahead_and_are_refused_unless_told_otherwise(name: str) -> None:
    assert support(trained(NOT_CAUSAL[name])).triu(1).any() or name == "expert choice"
    settings = {**vars(NOT_CAUSAL[name]), "causal": True}
    with pytest.raises(ValueError, match="router=.*no later token"):
        Decoder(config(MoEConfig(**settings)))


def test_expert_choice_chooses_by_later_tokens() -> None:
    decoder, ids = trained(NOT_CAUSAL["expert choice"]), torch.randint(30, (1, LENGTH))
    before = decoder(ids).logits[:, :-1]
    differs = []
    for other in range(30):
        changed = torch.cat([ids[:, :-1], torch.tensor([[other]])], dim=1)
        differs.append(not torch.allclose(decoder(changed).logits[:, :-1], before, atol=1e-9))
    assert any(differs)


@pytest.mark.parametrize("name", CAUSAL)
def test_token_by_token_over_a_cache_is_the_whole_at_once(name: str) -> None:
    from toolkit.attention import KeyValueCache

    decoder, ids = trained(CAUSAL[name]), torch.randint(30, (1, LENGTH))
    cache = KeyValueCache()
    with torch.no_grad():
        steps = [decoder(ids[:, i : i + 1], cache).logits for i in range(LENGTH)]
        torch.testing.assert_close(torch.cat(steps, dim=1), decoder(ids).logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [*CAUSAL, *NOT_CAUSAL])
def test_it_trains_and_its_losses_are_finite(name: str) -> None:
    decoder = Decoder(config({**CAUSAL, **NOT_CAUSAL}[name]))
    loss = decoder(torch.randint(30, (2, LENGTH))).logits.square().mean() + sum(auxiliary_losses(decoder).values())
    loss.backward()
    gradients = [p.grad for p in decoder.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", [*CAUSAL, *NOT_CAUSAL])
def test_settings_survive_json(name: str) -> None:
    written = config({**CAUSAL, **NOT_CAUSAL}[name], depth_capacity=0.5)
    assert DecoderConfig.from_dict(json.loads(json.dumps(written.to_dict()))) == written


@pytest.mark.parametrize("name", ["top_k", "sigmoid and bias", "switch", "sinkhorn", "hash", "soft"])
def test_the_stated_cost_is_what_a_run_counts(name: str) -> None:
    written = config({**CAUSAL, **NOT_CAUSAL}[name])
    torch.manual_seed(0)
    counted, stated = measure(Decoder(written), LENGTH), cost(written, LENGTH)
    assert counted.forward_flops == pytest.approx(stated.forward_flops["exact"], rel=1e-12)
    assert counted.training_flops == pytest.approx(stated.training_flops["exact"], rel=1e-12)


def test_losses_beside_a_router_that_names_its_own_are_refused() -> None:
    with pytest.raises(ValueError, match=r"balance=0\.5: it must be left at 0\.01 where router="):
        MoEConfig(12, 4, 2, balance=0.5, router="TopKRouter()")


@pytest.mark.parametrize("name", ["expert choice by threshold", "sigmoid and bias", "noisy", "capacity"])
def test_generating_from_a_model_in_training_mode_teaches_its_routers_nothing(name: str) -> None:
    decoder, prompt = trained(CAUSAL[name]), torch.randint(30, (1, 4))
    expected = decoder.generate(prompt, 5, temperature=0)
    decoder.train()
    before = {key: value.clone() for key, value in decoder.state_dict().items()}
    pending = [m.pending.clone() for m in decoder.modules() if isinstance(m, Balancer)]
    assert torch.equal(decoder.generate(prompt, 5, temperature=0), expected)
    assert all(torch.equal(value, before[key]) for key, value in decoder.state_dict().items())
    after = [m.pending for m in decoder.modules() if isinstance(m, Balancer)]
    assert all(map(torch.equal, pending, after))
    assert all(module.training for module in decoder.modules())


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_a_router_that_reads_ahead_is_not_decoded(name: str) -> None:
    with pytest.raises(ValueError, match=r"router='\w+Router'.*no later token"):
        trained(NOT_CAUSAL[name]).generate(torch.randint(30, (1, 4)), 2)
