"""What the processes of the tests of parallel training do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel import ParallelConfig
from toolkit.training.equivalence import Steps, train_steps

ATTENTION = AttentionConfig(heads=4, kv_heads=2, head_dim=4, qk_norm=True, sinks=True)
BALANCED = "TopKRouter(score='sigmoid', balancer=BiasBalancer())"


def decoder(kind: str, **changes: Any) -> DecoderConfig:
    """A small decoder, a dense layer and one of ``kind``.

    ``"dropout"`` drops attention weights in the second layer, ``"moe"`` has every part a MoE can have, ``"biased"``
    loss-free balance and experts without computation, ``"soft"`` and ``"choosing"`` are soft slots and expert
    choice.
    """
    dense = BlockConfig(ATTENTION, FeedForwardConfig(hidden_dim=24, bias=True))
    moe = MoEConfig(hidden_dim=8, num_experts=4, top_k=2, shared_experts=1, shared_gate=True, bias=True)
    biased = MoEConfig(hidden_dim=8, num_experts=4, top_k=2, router=BALANCED, constant_experts=1, identity_experts=1)
    soft = MoEConfig(hidden_dim=8, num_experts=4, top_k=1, router="SoftRouter(slots=2)", causal=False)
    choosing = MoEConfig(hidden_dim=8, num_experts=4, top_k=2, router="ExpertChoiceRouter()", causal=False)
    second = {
        "dense": BlockConfig(ATTENTION, FeedForwardConfig(hidden_dim=16, activation="relu2")),
        "dropout": BlockConfig(replace(ATTENTION, dropout_p=0.2), FeedForwardConfig(hidden_dim=16)),
        "moe": BlockConfig(ATTENTION, moe),
        "biased": BlockConfig(ATTENTION, biased),
        "soft": BlockConfig(ATTENTION, soft),
        "choosing": BlockConfig(ATTENTION, choosing),
        "depths": BlockConfig(ATTENTION, moe, depth_capacity=0.5),
    }[kind]
    return DecoderConfig(vocab_size=32, dim=16, blocks=(dense, second), **changes)


def spread_all(cases: list[tuple[DecoderConfig, ParallelConfig, dict[str, Any]]]) -> list[Steps]:
    """Several trainings in the same processes, one after another."""
    return [train_steps(model, parallel, **settings) for model, parallel, settings in cases]
