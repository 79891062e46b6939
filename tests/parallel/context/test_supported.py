"""Layers that parts of sequences would change are refused by name, with what would be right."""

from __future__ import annotations

from dataclasses import replace

import pytest

from toolkit.layers import MoE
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel.context.supported import require_parallel_model
from toolkit.routing import (
    ExpertChoiceRouter,
    GShardLoss,
    GShardRouter,
    HashRouter,
    LoadBalancingLoss,
    RandomRouter,
    RouterZLoss,
    SinkhornRouter,
    SoftRouter,
    SwitchRouter,
    TopKRouter,
)

PLAIN = BlockConfig(AttentionConfig(heads=4), FeedForwardConfig(hidden_dim=8))


def decoder(block: BlockConfig) -> Decoder:
    return Decoder(DecoderConfig(vocab_size=11, dim=16, blocks=(PLAIN, block)))


ATTENTION = "Causal() & GlobalTokens(2)"
MOBA, NATIVE = "MoBA(block=4, top_k=2)", "NativeSparse(block=4, top_k=3, compress_block=4, stride=2, window=4)"


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("ring", {"pattern": MOBA}, r"attention.pattern=MoBA.*fixed pattern with context_method='ring'; 'ulysses'"),
        ("ring", {"pattern": NATIVE}, r"attention.pattern=NativeSparse.*context_method='ring'; 'ulysses'"),
        ("ring", {"pattern": "RandomBlocks(1, 4, 0)"}, r"pattern=RandomBlocks.*causal=True"),
        ("ring", {"pattern": ATTENTION, "global_projections": True}, "global_projections=True: it must be False"),
        ("ulysses", {"pattern": ATTENTION, "global_projections": True}, "global_projections=True: it must be False"),
        ("ring", {"rope_scaling": "DynamicNTKScaling(factor=2, original_length=8)"}, "rope.scaling=Dynamic"),
        ("ulysses", {"pattern": NATIVE, "kv_heads": 1}, "kv_heads=1: it must be a multiple of 2 ranks"),
    ],
)
def test_attention_is_refused_by_name(method: str, settings: dict, message: str) -> None:
    model = decoder(replace(PLAIN, attention=replace(PLAIN.attention, **settings)))
    with pytest.raises(ValueError, match=rf"blocks.1.attention.*{message}|{message}"):
        require_parallel_model(model, 2, method)


@pytest.mark.parametrize("settings", [{"pattern": MOBA}, {"pattern": NATIVE, "kv_heads": 2}, {"pattern": "Full()"}])
def test_shared_out_heads_take_what_chooses_by_content(settings: dict) -> None:
    require_parallel_model(decoder(replace(PLAIN, attention=replace(PLAIN.attention, **settings))), 2, "ulysses")


def test_mixture_of_depths_is_refused() -> None:
    with pytest.raises(ValueError, match="blocks.1='MixtureOfDepths'.*a plain Block"):
        require_parallel_model(decoder(replace(PLAIN, depth_capacity=0.5)), 2, "ring")


LOSSES = {"losses": []}


@pytest.mark.parametrize(
    ("router", "message"),
    [
        (ExpertChoiceRouter(16, 4, 2, **LOSSES), "router='ExpertChoiceRouter'.*chooses for each token by itself"),
        (SinkhornRouter(16, 4, 2, **LOSSES), "router='SinkhornRouter'"),
        (SoftRouter(16, 4, 2), "router='SoftRouter'"),
        (RandomRouter(4, 2), "router='RandomRouter'"),
        (GShardRouter(16, 4), r"""router="GShardRouter\(second='random'\)" """.strip()),
        (TopKRouter(16, 4, 2, losses=[GShardLoss()]), "losses=GShardLoss.*over='global'"),
        (TopKRouter(16, 4, 2, losses=[LoadBalancingLoss(over="batch")]), "losses=LoadBalancingLoss"),
        (TopKRouter(16, 4, 2, losses=[LoadBalancingLoss(over="sequence")]), "losses=LoadBalancingLoss"),
        (SwitchRouter(16, 4), "router.noise=Jitter.*None: it is drawn by place"),
        (TopKRouter(16, 4, 2), None),
        (TopKRouter(16, 4, 2, losses=[RouterZLoss()]), None),
        (SwitchRouter(16, 4, jitter=0), None),
        (GShardRouter(16, 4, second="always"), None),
        (HashRouter(4, 2, vocab_size=11), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_routers_of_a_group_of_tokens_are_refused(router: object, message: str | None) -> None:
    moe = MoE(16, 8, 4, getattr(router, "top_k", 2), router=router)
    if message is None:
        require_parallel_model(moe, 2, "ring")
        return
    with pytest.raises(ValueError, match=message):
        require_parallel_model(moe, 2, "ring")


@pytest.mark.parametrize("settings", [{"capacity_factor": 1.0}, {"adjust": ("TokenRounding(4)",)}])
def test_adjustments_that_count_tokens_are_refused(settings: dict) -> None:
    experts = MoEConfig(hidden_dim=8, num_experts=4, top_k=2, **settings)
    with pytest.raises(ValueError, match=r"feed_forward.adjust=\['(Capacity|TokenRounding)'\]"):
        require_parallel_model(decoder(replace(PLAIN, feed_forward=experts)), 2, "ring")
