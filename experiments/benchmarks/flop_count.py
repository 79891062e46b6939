"""FLOPs by closed form against FLOPs counted in a run, and how far the conventions lie apart.

    python experiments/benchmarks/flop_count.py

`measured` is torch's FlopCounterMode over a forward and backward of the reference backends, of whose full
attention square the share is kept that the brute-force mask shows.
"""

from __future__ import annotations

from toolkit.compute import CONVENTIONS, cost, measure
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig

CONTEXT = 128
OTHERS = tuple(name for name in CONVENTIONS if name != "exact")
DENSE, MOE = FeedForwardConfig(256), MoEConfig(128, num_experts=8, top_k=2)
SHARED = MoEConfig(64, num_experts=16, top_k=3, shared_experts=1)
WINDOW = "Causal() & SlidingWindow(32)"
MODELS = {
    "dense": [BlockConfig(AttentionConfig(4), DENSE)] * 2,
    "dense, 2 key heads": [BlockConfig(AttentionConfig(4, kv_heads=2), DENSE)] * 2,
    "dense, window 32": [BlockConfig(AttentionConfig(4, pattern=WINDOW), DENSE)] * 2,
    "MoE 2 of 8": [BlockConfig(AttentionConfig(4), MOE)] * 2,
    "MoE 3 of 16 + 1 shared": [BlockConfig(AttentionConfig(4), SHARED)] * 2,
    "MoE 2 of 8, window 32": [BlockConfig(AttentionConfig(4, pattern=WINDOW), MOE)] * 2,
    "layers mixed": [
        BlockConfig(AttentionConfig(4), DENSE),
        BlockConfig(AttentionConfig(4, kv_heads=1, pattern=WINDOW), SHARED),
    ],
}


def main() -> None:
    """Print the table, training FLOPs per token."""
    print(f"training FLOPs per token, width 64, context {CONTEXT}, vocabulary 256")
    names = ("exact", "measured", "measured/exact", *(f"{other}/exact" for other in OTHERS))
    print(f"{'model':<24}" + "".join(f"{name:>19}" for name in names))
    for name, blocks in MODELS.items():
        config = DecoderConfig(256, 64, tuple(blocks))
        flops = cost(config, CONTEXT).training_flops
        exact, measured = flops["exact"], measure(Decoder(config), CONTEXT).training_flops
        ratios = [flops[other] / exact for other in OTHERS]
        print(
            f"{name:<24}{exact:>19,.0f}{measured:>19,.0f}{measured / exact:>19.6f}"
            + "".join(f"{r:>19.3f}" for r in ratios)
        )


if __name__ == "__main__":
    main()
