"""Shapes: sparse models differ from dense ones only in what they do not use; depth and heads follow from the width."""

from __future__ import annotations

from typing import Any

import pytest

from toolkit.compute import cost
from toolkit.models import DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.scaling import Family, ModelShape

DENSE = Family("dense")
FINE = Family("fine", num_experts=8, top_k=3, shared_experts=1)
WINDOW = ("Causal() & SlidingWindow(4)",)


@pytest.mark.parametrize("dim", [24, 64, 128])
@pytest.mark.parametrize("patterns", [("Causal()",), WINDOW])
def test_dense_and_moe_have_equal_active_parameters_up_to_the_router(dim: int, patterns: tuple[str, ...]) -> None:
    arms = Family("dense", patterns=patterns), Family("fine", 8, 3, 1, patterns=patterns)
    shape = ModelShape(arms, layers=3)
    dense, moe = (cost(shape.decoder(family, dim, 256), 32) for family in shape.families)
    routers = 3 * 8 * dim
    assert moe.total_active_parameters == dense.total_active_parameters + routers
    assert moe.active_parameters["router"] == routers
    assert moe.parameters["experts"] == 8 / 3 * moe.active_parameters["experts"]
    assert moe.training_flops["exact"] - dense.training_flops["exact"] == pytest.approx(6 * routers)


def test_a_window_changes_no_parameter() -> None:
    for experts in (0, 8):
        shape = ModelShape((Family("full", experts), Family("window", experts, patterns=WINDOW)))
        full, window = (cost(shape.decoder(name, 32, 256), 32) for name in shape.families)
        assert full.parameters == window.parameters
        assert window.training_flops["exact"] < full.training_flops["exact"]


def test_the_decoder_is_what_the_shape_and_the_family_say() -> None:
    moe_family = Family("moe", 6, 2, 1, balance=0.03, z_loss=0.0, patterns=WINDOW)
    shape = ModelShape(
        (DENSE, moe_family), layers=3, head_dim=16, queries_per_kv_head=2, feed_forward_ratio=2.5, tied_head=False
    )
    moe, dense = shape.decoder("moe", 64, 300), shape.decoder("dense", 64, 300)
    assert (moe.vocab_size, moe.dim, len(moe.blocks), moe.tied_head) == (300, 64, 3, False)
    attention = moe.blocks[0].attention
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (4, 2, 16)
    assert attention.pattern == "Causal() & SlidingWindow(4)"
    assert moe.blocks[2].feed_forward == MoEConfig(round(160 / 3), 6, 2, 1, 0.03, 0.0)
    assert dense.blocks[0].attention.pattern == "Causal()"
    assert dense.blocks[0].feed_forward == FeedForwardConfig(160)


def test_a_family_may_name_its_router_and_mix_attention_by_layer() -> None:
    router = "TopKRouter(score='sigmoid', balancer=BiasBalancer())"
    shape = ModelShape((Family("hybrid", 4, router=router, patterns=(*WINDOW, *WINDOW, "Causal()")),), layers=5)
    blocks = shape.decoder("hybrid", 32, 256).blocks
    assert [block.attention.pattern for block in blocks] == [*WINDOW, *WINDOW, "Causal()", *WINDOW, *WINDOW]
    assert all(isinstance(block.feed_forward, MoEConfig) and block.feed_forward.router == router for block in blocks)


@pytest.mark.parametrize(
    ("dim", "heads", "head_dim"), [(24, 1, 24), (64, 1, 64), (96, 1, 96), (128, 2, 64), (192, 3, 64)]
)
def test_a_width_is_shared_by_as_many_heads_as_fit(dim: int, heads: int, head_dim: int) -> None:
    model: DecoderConfig = ModelShape(head_dim=64).decoder("dense", dim, 256)
    assert (model.blocks[0].attention.heads, model.blocks[0].attention.head_dim) == (heads, head_dim)


@pytest.mark.parametrize(("dim", "ratio", "layers"), [(32, None, 2), (32, 64.0, 2), (128, 32.0, 4), (240, 32.0, 8)])
def test_depth_follows_width_by_the_aspect_ratio_and_never_falls_below_layers(
    dim: int, ratio: float | None, layers: int
) -> None:
    assert len(ModelShape(aspect_ratio=ratio, head_dim=16).decoder("moe", dim, 256).blocks) == layers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": ""}, "name='': it must be letters"),
        ({"name": "<script>"}, "name='<script>'"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"name": "a|b"}, "name="),
        ({"name": "../a"}, "name="),
        ({"num_experts": -1}, "num_experts=-1: it must be 0 or more"),
        ({"num_experts": 8, "top_k": 9}, "top_k=9: it must be at most num_experts=8"),
        ({"top_k": 0}, "top_k=0: it must be positive"),
        ({"shared_experts": -1}, "shared_experts=-1: it must be 0 or more"),
        ({"patterns": ()}, r"patterns=\(\): it must be at least one"),
        ({"patterns": ("Slidin(4)",)}, "Slidin"),
    ],
)
def test_a_bad_family_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Family(**{"name": "x", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *[
            ({name: 0}, f"{name}=0: it must be positive")
            for name in ("layers", "head_dim", "queries_per_kv_head", "feed_forward_ratio", "aspect_ratio")
        ],
        (
            {"arms": (DENSE, Family("dense", 4))},
            r"arms=\['dense'\]: it must be at least one, each by a name of its own",
        ),
    ],
)
def test_a_bad_shape_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelShape(**settings)


@pytest.mark.parametrize(
    ("family", "dim", "shape", "message"),
    [
        ("mixture", 32, ModelShape(), "families='mixture': it must be one of dense, moe, dense.window, moe.window"),
        ("dense", 145, ModelShape(head_dim=64), "dims=145: it must be a multiple of 4: 2 heads"),
        ("dense", 64, ModelShape(head_dim=32, queries_per_kv_head=4), "queries_per_kv_head=4: it must be a divisor of"),
    ],
)
def test_a_width_or_family_that_makes_no_model_is_refused(
    family: str, dim: int, shape: ModelShape, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shape.decoder(family, dim, 256)
