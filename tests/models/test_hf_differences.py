"""What no family of Hugging Face's has is refused by block and name; what is but written otherwise is not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hugging_face_cases import DIM, HIDDEN, MOE, VOCAB, WINDOW, assert_same_logits_and_gradients, config, made

from toolkit.models import (
    BlockConfig,
    Decoder,
    DecoderConfig,
    FeedForwardConfig,
    MoEConfig,
    from_hf,
    save_hf,
    to_hf,
)

pytest.importorskip("transformers")
pytest.importorskip("safetensors.torch")

BLOCK, SPARSE = config().blocks[0], config(MOE).blocks[0]


def layers(*blocks: BlockConfig) -> DecoderConfig:
    return DecoderConfig(VOCAB, DIM, blocks)


def attending(**settings: Any) -> BlockConfig:
    return replace(BLOCK, attention=replace(BLOCK.attention, **settings))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            layers(BLOCK, SPARSE),
            r"blocks\[1\]\.feed_forward='MoEConfig': it must be FeedForwardConfig as in blocks\[0\]",
        ),
        (layers(SPARSE, SPARSE, BLOCK), r"blocks\[2\]\.feed_forward='FeedForwardConfig': it must be MoEConfig"),
        (layers(SPARSE, replace(SPARSE, feed_forward=replace(MOE, top_k=3))), r"blocks\[1\]\.feed_forward\.top_k=3"),
        (layers(BLOCK, attending(pattern=WINDOW.format(3))), r"blocks\[1\]\.attention\.pattern"),
        (layers(BLOCK, attending(kv_heads=1)), r"blocks\[1\]\.attention\.kv_heads=1: it must be 2"),
        (layers(BLOCK, replace(BLOCK, depth_capacity=0.5)), r"blocks\[1\]\.depth_capacity=0\.5: it must be None"),
        (config(pattern="Full()"), r"blocks\[0\]\.attention\.pattern='Full\(\)'"),
        (config(pattern="SlidingWindow(4)"), r"blocks\[0\]\.attention\.pattern"),
        (config(pattern="Causal() & (SlidingWindow(4) | Sinks(1))"), r"pattern=.*it must be 'Causal\(\)' or"),
        (config(pattern="Causal() & SlidingWindow(4) & ~Sinks(1)"), r"blocks\[0\]\.attention\.pattern"),
        (config(pattern="MoBA(block=4, top_k=1)"), r"blocks\[0\]\.attention\.pattern='MoBA"),
        (config(MOE, pattern="Causal() | Sinks(1)"), r"pattern=.* MixtralForCausalLM"),
        (config(qk_norm=True), r"blocks\[0\]\.attention\.qk_norm=True: it must be False in a LlamaForCausalLM"),
        (config(softcap=30.0), r"attention\.softcap=30\.0"),
        (config(sinks=True), r"attention\.sinks=True"),
        (config(rope_base=None), r"attention\.rope_base=None"),
        (config(rope_scaling="NTKScaling(factor=2)"), r"attention\.rope_scaling='NTKScaling"),
        (config(rope_fraction=0.5), r"attention\.rope_fraction=0.5"),
        (config(rope_interleaved=True), r"attention\.rope_interleaved=True"),
        (config(heads=3, kv_heads=1, head_dim=8), r"attention\.heads=3: it must be a divisor of dim=32"),
        (config(FeedForwardConfig(HIDDEN, "gelu")), r"feed_forward\.activation='gelu'"),
        (config(FeedForwardConfig(HIDDEN, bias=True)), r"feed_forward\.bias=True"),
        (config(replace(MOE, shared_experts=1)), r"blocks\[0\]\.feed_forward\.shared_experts=1"),
        (config(replace(MOE, zero_experts=1)), r"feed_forward\.zero_experts=1"),
        (config(replace(MOE, z_loss=0.1)), r"feed_forward\.z_loss=0\.1: it must be 0\.0 .*for_evaluation=True"),
        (config(replace(MOE, capacity_factor=1.5)), r"feed_forward\.capacity_factor=1\.5: .*for_evaluation=True"),
        (config(replace(MOE, adjust=("TokenRounding(4)",))), r"feed_forward\.adjust="),
        (config(replace(MOE, top_k=1)), r"feed_forward\.router=None: it must be 'TopKRouter\(normalize=True"),
        (config(MoEConfig(HIDDEN, 4, 2, router="TopKRouter(score='sigmoid')")), r"feed_forward\.router=.*sigmoid"),
        (config(MoEConfig(HIDDEN, 4, 2, router="HashRouter()")), r"feed_forward\.router='HashRouter\(\)'"),
    ],
)
@pytest.mark.filterwarnings("ignore:normalize=True with top_k=1")
def test_a_decoder_that_no_family_has_is_refused(settings: DecoderConfig, named: str, tmp_path: Path) -> None:
    decoder = Decoder(settings)
    with pytest.raises(ValueError, match=named):
        to_hf(decoder)
    with pytest.raises(ValueError, match=named):
        save_hf(decoder, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_what_only_training_sees_is_left_out_when_asked(tmp_path: Path) -> None:
    moe = replace(MOE, z_loss=0.1, capacity_factor=1.0, drop_policy="position", recompute=True, causal=False)
    decoder = made(config(moe))
    assert_same_logits_and_gradients(decoder, to_hf(decoder, for_evaluation=True))
    save_hf(decoder, tmp_path, for_evaluation=True)
    assert from_hf(tmp_path).config == config(MOE)
    with pytest.raises(ValueError, match="qk_norm"):
        to_hf(made(config(moe, qk_norm=True)), for_evaluation=True)


@pytest.mark.parametrize(
    ("attention", "usual"),
    [
        ({"kv_heads": 4}, {"kv_heads": None}),
        ({"head_dim": 8}, {}),
        ({"pattern": "SlidingWindow(width=4) & Causal()"}, {"pattern": WINDOW.format(4)}),
    ],
)
def test_another_way_to_write_the_same_is_accepted(attention: dict[str, Any], usual: dict[str, Any]) -> None:
    assert from_hf(to_hf(made(config(**attention)))).config == config(**usual)


def test_weights_of_several_dtypes_are_refused(tmp_path: Path) -> None:
    decoder = made(config())
    decoder.norm.double()
    for verb in (to_hf, partial(save_hf, folder=tmp_path)):
        with pytest.raises(ValueError, match="of one dtype"):
            verb(decoder)
