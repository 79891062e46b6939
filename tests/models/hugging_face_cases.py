"""Decoders that Hugging Face has too, and how the two are held against each other."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.models import (
    AttentionConfig,
    BlockConfig,
    Decoder,
    DecoderConfig,
    FeedForwardConfig,
    MoEConfig,
)
from toolkit.models.hf_weights import write_weights

VOCAB, DIM, HIDDEN = 37, 32, 48
DENSE = FeedForwardConfig(HIDDEN)
MOE = MoEConfig(HIDDEN, num_experts=4, top_k=2, z_loss=0.0)
WINDOW = "Causal() & SlidingWindow({})"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def config(
    feed_forward: FeedForwardConfig | MoEConfig = DENSE,
    heads: int = 4,
    kv_heads: int | None = 2,
    tied_head: bool = True,
    norm_eps: float = 1e-6,
    **attention: Any,
) -> DecoderConfig:
    block = BlockConfig(AttentionConfig(heads, kv_heads, **attention), feed_forward)
    return DecoderConfig(VOCAB, DIM, (block,) * 2, tied_head, norm_eps)


def made(settings: DecoderConfig, dtype: torch.dtype = torch.float32) -> Decoder:
    """Norm weights away from 1, so that one in the wrong place is seen."""
    decoder = Decoder(settings).to(dtype).eval()
    with torch.no_grad():
        for module in decoder.modules():
            if isinstance(module, nn.RMSNorm):
                module.weight.uniform_(0.5, 1.5)
    return decoder


def wholly_in_double(theirs: Any, decoder: Decoder) -> None:
    """Hugging Face computes norms, routers' softmax and angles in fp32 whatever the dtype: the same in fp64.

    Frequencies are fp32 in both, so both get the same table of them, whose last bits differ.
    """
    inv_freq = decoder.blocks[0].attention.rope.frequencies(1)[0]  # type: ignore[union-attr, operator]
    theirs.model.rotary_emb.forward = partial(_angles, inv_freq.double())
    for module in theirs.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_norm, module)
        if type(module).__name__ == "MixtralTopKRouter":
            module.forward = partial(_route, module)


def _angles(inv_freq: Tensor, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    angles = (position_ids[..., None] * inv_freq).repeat(1, 1, 2)
    return angles.cos(), angles.sin()


def _norm(norm: Any, x: Tensor) -> Tensor:
    y: Tensor = norm.weight * x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    return y


def _route(router: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits = F.linear(x.flatten(0, -2), router.weight)
    kept = logits.softmax(-1).topk(router.top_k)
    return logits, kept.values / kept.values.sum(-1, keepdim=True), kept.indices


def assert_same_logits_and_gradients(decoder: Decoder, theirs: Any) -> None:
    dtype = decoder.embedding.weight.dtype
    if dtype == torch.float64:
        wholly_in_double(theirs, decoder)
    ids = torch.randint(VOCAB, (2, 23))
    mine, other = decoder(ids).logits, theirs(ids).logits
    close = partial(torch.testing.assert_close, rtol=TOLERANCE[dtype])
    close(mine, other, atol=TOLERANCE[dtype])
    d_logits = torch.randn_like(mine)
    mine.backward(d_logits)
    other.backward(d_logits)
    gradients = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    renamed = write_weights(decoder.config, gradients, "modules")  # type: ignore[arg-type]  # none is None
    expected = dict(theirs.named_parameters())
    assert renamed.keys() == expected.keys()
    for name, gradient in renamed.items():
        scale = max(1.0, float(expected[name].grad.abs().max()))
        close(gradient, expected[name].grad, atol=TOLERANCE[dtype] * scale, msg=partial("{}: {}".format, name))


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert weight.dtype == theirs[name].dtype
        assert torch.equal(weight, theirs[name]), name
