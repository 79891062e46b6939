"""What the processes of the tests of parallel training do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel import ParallelConfig, build_mesh, parallelize
from toolkit.training.equivalence import Steps, train_steps

ATTENTION = AttentionConfig(heads=4, kv_heads=2, head_dim=4, qk_norm=True, sinks=True)
BRANCHES = AttentionConfig(
    heads=4, kv_heads=2, head_dim=4, pattern="NativeSparse(block=4, top_k=3, compress_block=4, stride=2, window=4)"
)
BALANCED = "TopKRouter(score='sigmoid', balancer=BiasBalancer())"


def decoder(kind: str, **changes: Any) -> DecoderConfig:
    """A small decoder, a dense layer and one of ``kind``.

    ``"dropout"`` drops attention weights in the second layer, ``"moe"`` has every part a MoE can have, ``"biased"``
    loss-free balance and experts without computation, ``"soft"`` and ``"choosing"`` are soft slots and expert
    choice, ``"chosen"`` and ``"branches"`` attend to keys chosen by content.
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
        "chosen": BlockConfig(replace(ATTENTION, pattern="MoBA(block=4, top_k=2)"), moe),
        "branches": BlockConfig(BRANCHES, moe),
        "depths": BlockConfig(ATTENTION, moe, depth_capacity=0.5),
    }[kind]
    return DecoderConfig(vocab_size=32, dim=16, blocks=(dense, second), **changes)


def generated(ways: list[ParallelConfig]) -> list[list[list[int]]]:
    """What a decoder continues a prompt with, by the likeliest tokens; without a way in this process alone."""
    found = []
    for parallel in ways or [None]:
        torch.manual_seed(0)
        model = Decoder(decoder("moe")).double()
        prompt = torch.randint(32, (2, 6))
        if parallel is not None:
            parallelize(model, build_mesh(parallel))
        found.append(model.generate(prompt, 5, temperature=0).tolist())
    return found


def spread_all(cases: list[tuple[DecoderConfig, ParallelConfig, dict[str, Any]]]) -> list[Steps]:
    """Several trainings in the same processes, one after another."""
    return [train_steps(model, parallel, **settings) for model, parallel, settings in cases]
