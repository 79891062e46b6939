"""A decoder's twin in Hugging Face's classes: its settings in their words, its weights under their names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from toolkit.layers import MoE
from toolkit.models import Decoder


def hf_settings(decoder: Decoder) -> dict[str, Any]:
    """The decoder's settings in Hugging Face's words."""
    attention = decoder.config.blocks[0].attention
    return {
        "vocab_size": decoder.config.vocab_size,
        "hidden_size": decoder.config.dim,
        "intermediate_size": decoder.config.blocks[0].feed_forward.hidden_dim,
        "num_hidden_layers": len(decoder.config.blocks),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "rms_norm_eps": decoder.config.norm_eps,
        "tie_word_embeddings": decoder.config.tied_head,
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.rope_base},
        "max_position_embeddings": 64,
        "attn_implementation": "sdpa",
    }


def hf_weights(decoder: Decoder) -> dict[str, Tensor]:
    """The decoder's weights under Hugging Face's names."""
    weights: dict[str, Tensor] = {
        "model.embed_tokens.weight": decoder.embedding.weight,
        "model.norm.weight": decoder.norm.weight,
    }
    weights["lm_head.weight"] = decoder.embedding.weight if decoder.head is None else decoder.head.weight
    block: Any
    for n, block in enumerate(decoder.blocks):
        here, attention, feed_forward = f"model.layers.{n}", block.attention, block.feed_forward
        sizes = [width * attention.head_dim for width in (attention.heads, attention.kv_heads, attention.kv_heads)]
        for name, part in zip("qkv", attention.qkv_proj.split(sizes), strict=True):
            weights[f"{here}.self_attn.{name}_proj.weight"] = part
        weights[f"{here}.self_attn.o_proj.weight"] = attention.o_proj
        weights[f"{here}.input_layernorm.weight"] = block.attention_norm.weight
        weights[f"{here}.post_attention_layernorm.weight"] = block.feed_forward_norm.weight
        if isinstance(feed_forward, MoE):
            weights[f"{here}.mlp.gate.weight"] = feed_forward.router.state_dict()["weight"]
            weights[f"{here}.mlp.experts.gate_up_proj"] = feed_forward.experts.gate_up_proj
            weights[f"{here}.mlp.experts.down_proj"] = feed_forward.experts.down_proj
        else:
            gate, up = feed_forward.gate_up_proj.chunk(2)
            weights |= {f"{here}.mlp.gate_proj.weight": gate, f"{here}.mlp.up_proj.weight": up}
            weights[f"{here}.mlp.down_proj.weight"] = feed_forward.down_proj
    return {name: weight.detach().clone() for name, weight in weights.items()}


def unusual_norms(decoder: Decoder) -> Decoder:
    """Norm weights away from 1, so that one in the wrong place is seen."""
    with torch.no_grad():
        for module in decoder.modules():
            if isinstance(module, nn.RMSNorm):
                module.weight.uniform_(0.5, 1.5)
    return decoder


def hugging_face(kind: str, decoder: Decoder, **more: Any) -> nn.Module:
    import transformers

    settings = getattr(transformers, f"{kind}Config")(**hf_settings(decoder), **more)
    settings._experts_implementation = "eager"
    model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(settings)
    model.load_state_dict(hf_weights(decoder), strict=True)
    return model.eval()
