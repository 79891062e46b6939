"""Small decoders of every kind that the accounting has to get right."""

from __future__ import annotations

from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig

DIM, VOCAB = 32, 50
WINDOW = "Causal() & SlidingWindow(7)"

DENSE = BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(64))
MOE = BlockConfig(AttentionConfig(heads=2), MoEConfig(hidden_dim=24, num_experts=4, top_k=2))


def decoder_config(*blocks: BlockConfig, tied_head: bool = True, vocab_size: int = VOCAB) -> DecoderConfig:
    return DecoderConfig(vocab_size, DIM, blocks, tied_head)


GLOBALS = "Causal() & (DilatedWindow(3, 2) | GlobalTokens(positions=[0]))"

CONFIGS = {
    "dense": decoder_config(DENSE, DENSE),
    "untied": decoder_config(DENSE, tied_head=False),
    "full": decoder_config(BlockConfig(AttentionConfig(heads=2, pattern="Full()"), FeedForwardConfig(40))),
    "window": decoder_config(BlockConfig(AttentionConfig(heads=2, pattern=WINDOW), FeedForwardConfig(64))),
    "grouped": decoder_config(BlockConfig(AttentionConfig(heads=4, kv_heads=2), FeedForwardConfig(64))),
    "wide_heads": decoder_config(BlockConfig(AttentionConfig(heads=2, kv_heads=1, head_dim=24), FeedForwardConfig(8))),
    "moe": decoder_config(MOE, MOE),
    "top1": decoder_config(BlockConfig(AttentionConfig(heads=2), MoEConfig(24, 4, 1))),
    "shared": decoder_config(BlockConfig(AttentionConfig(heads=2), MoEConfig(24, 4, 2, shared_experts=2))),
    "scored": decoder_config(
        BlockConfig(AttentionConfig(heads=2, qk_norm=True, sinks=True, softcap=5.0), FeedForwardConfig(40))
    ),
    "globals": decoder_config(BlockConfig(AttentionConfig(heads=2, pattern=GLOBALS), FeedForwardConfig(40))),
    "mixed": decoder_config(
        DENSE,
        BlockConfig(AttentionConfig(heads=4, kv_heads=1, head_dim=16, pattern=WINDOW), MoEConfig(24, 8, 3, 1)),
        BlockConfig(AttentionConfig(heads=1, pattern="Full()"), MoEConfig(16, 8, 8)),
        tied_head=False,
    ),
}
