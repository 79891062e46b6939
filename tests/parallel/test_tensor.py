"""Who holds what under tensor parallelism, what is refused, and what a layer shows outside of its forward."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gloo import run_processes
from strategies_work import decoder
from tensor_work import as_it_was, held, refused_length

from toolkit.layers import SelfAttention, SwiGLU
from toolkit.layers.experts import Experts
from toolkit.models import AttentionConfig, Decoder, FeedForwardConfig
from toolkit.models.build import build_attention, build_feed_forward
from toolkit.parallel import ParallelConfig, tensor_parallel
from toolkit.parallel.tensor.shares import shares

MESH: Any = SimpleNamespace(size=lambda: 3)


@pytest.mark.parametrize("kind", ["moe", "depths"])
def test_all_matrices_but_routers_are_shared_evenly(kind: str) -> None:
    for mine in run_processes(2, held, kind, ParallelConfig(tensor=2)):
        assert set(mine) == {name for name, _ in Decoder(decoder(kind)).named_parameters()}
        for name, (here, everywhere) in mine.items():
            shared = name.endswith(("_proj", "gate_up_proj_bias", "sink_logits", "embedding.weight"))
            assert here == (everywhere // 2 if shared else everywhere), name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": 4, "kv_heads": 2}, "heads=4: it must be a multiple of tensor=3: 4 / 3 is not whole"),
        ({"heads": 6, "kv_heads": 2}, "key_heads=2: it must be a multiple of tensor=3: 2 / 3 is not whole"),
        ({"heads": 3, "pattern": "NativeSparse()"}, "a fixed pattern without global_projections"),
        ({"heads": 3, "pattern": "PerHead([Causal(), Full(), Causal()])"}, "the same for every head with tensor=3"),
    ],
)
def test_attention_that_cannot_be_shared_by_heads_is_refused(config: dict[str, Any], message: str) -> None:
    attention = build_attention(AttentionConfig(head_dim=4, **config), 12)
    with pytest.raises(ValueError, match=message):
        shares(attention, 3)


def test_hidden_units_that_cannot_be_shared_evenly_are_refused() -> None:
    for layer in (SwiGLU(4, 8), Experts(4, 8, 2), build_feed_forward(FeedForwardConfig(8, "gelu", True), 4)):
        with pytest.raises(ValueError, match="hidden_dim=8: it must be a multiple of tensor=3: 8 / 3 is not whole"):
            shares(layer, 3)


def test_a_vocabulary_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=32: it must be a multiple of tensor=3: 32 / 3 is not whole"):
        tensor_parallel(Decoder(decoder("dense")), MESH)


def test_a_length_that_cannot_be_shared_evenly_is_refused() -> None:
    right = "length=7: it must be a multiple of tensor=2, or sequence_parallel=False"
    assert run_processes(2, refused_length, 7) == [right] * 2


def test_parts_of_a_layer_without_biases_or_gate_have_no_share() -> None:
    assert set(shares(SwiGLU(4, 6), 3)) == {"gate_up_proj", "down_proj"}
    assert set(shares(build_feed_forward(FeedForwardConfig(6, "relu2"), 4), 3)) == {"up_proj", "down_proj"}
    assert set(shares(SelfAttention(6, 3), 3)) == {"qkv_proj", "o_proj"}
    assert shares(torch.nn.RMSNorm(4), 3)["weight"].dim is None


def test_outside_of_its_forward_a_layer_is_whole() -> None:
    for whole in run_processes(2, as_it_was):
        assert whole == [True] * 5
