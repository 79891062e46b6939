"""Other libraries' attention, for :mod:`attention` beside it: patterns they can express, each called its own way."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from toolkit.attention import Causal, Full, SlidingWindow, Window

HEADS, HEAD_DIM, WINDOW = 8, 64, 512
PATTERNS = {
    "causal window 512": Causal() & SlidingWindow(WINDOW),
    "window 256 each side": Window(256, 256),
    "causal": Causal(),
    "full": Full(),
}

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


Built = tuple[Attend, bool]
"""What attends, and whether it can only go forward."""


def masked_sdpa(name: str, length: int, device: str = "cpu") -> Built:
    """torch's own with a boolean mask."""
    mask = PATTERNS[name].mask(length, length, device=device)
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), False


def plain_sdpa(name: str, length: int, device: str = "cpu") -> Built:
    """torch's own where it needs no mask."""
    if name not in ("causal", "full"):
        raise ValueError("it has no windows")
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=name == "causal"), False


def flex(name: str, length: int, device: str = "cpu") -> Built:
    """FlexAttention, compiled; on the CPU it refuses gradients."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    pattern = PATTERNS[name]

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return pattern.visible(i, j, length)

    blocks = None if name == "full" else create_block_mask(sees, None, None, length, length, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=blocks), device == "cpu"


def local_attention(name: str, length: int, device: str = "cpu") -> Built:
    """The local-attention package with its exact windows, which hold one key more on the far side."""
    if name not in ("causal window 512", "window 256 each side"):
        raise ValueError("it has windows only")
    causal = name == "causal window 512"
    size = WINDOW - 1 if causal else 256
    package = import_module("local_attention")
    local = package.LocalAttention(size, causal=causal, exact_windowsize=True, autopad=True, use_rotary_pos_emb=False)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return local(*(rearrange(x, "b h n d -> (b h) n d") for x in (q, k, v))).view_as(q)

    return attend, False


def longformer(name: str, length: int, device: str = "cpu") -> Built:
    """Hugging Face's sliding chunks, without the projections around them."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    if name != "window 256 each side":
        raise ValueError("it has windows to both sides only")
    config = LongformerConfig(hidden_size=HEADS * HEAD_DIM, num_attention_heads=HEADS, attention_window=[512])
    module = LongformerSelfAttention(config, layer_id=0).eval()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (rearrange(x, "b h n d -> b n h d") for x in (q * HEAD_DIM**-0.5, k, v))
        scores = module._sliding_chunks_query_key_matmul(q, k, 256)
        return module._sliding_chunks_matmul_attn_probs_value(scores.softmax(-1), v, 256).transpose(1, 2)

    return attend, False


def flash(name: str, length: int, device: str = "cuda") -> Built:
    """The flash-attn package."""
    package = import_module("flash_attn")
    causal = name.startswith("causal")
    window = {"causal window 512": (WINDOW - 1, 0), "window 256 each side": (256, 256)}.get(name, (-1, -1))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return package.flash_attn_func(q, k, v, causal=causal, window_size=window).transpose(1, 2)

    return attend, False


PEERS: dict[str, Callable[..., Built]] = {
    "SDPA with mask": masked_sdpa,
    "FlexAttention": flex,
    "local-attention": local_attention,
    "Longformer (HF)": longformer,
}
GPU_PEERS: dict[str, Callable[..., Built]] = {"FlexAttention": flex, "SDPA": plain_sdpa, "flash-attn": flash}
