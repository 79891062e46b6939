"""FLOP conventions against what their authors published: figures, and formulas written out here term by term."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from toolkit.attention import Causal, Documents, attention_work
from toolkit.compute import Cost, cost
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig


def gelu(
    layers: int, dim: int, hidden_dim: int, head_dim: int, heads: int, vocab_size: int, pattern: str = "Causal()"
) -> DecoderConfig:
    """A decoder of two-matrix feed-forwards, as GPT-2's and Chinchilla's are."""
    attention = AttentionConfig(heads=heads, head_dim=head_dim, pattern=pattern)
    block = BlockConfig(attention, FeedForwardConfig(hidden_dim, "gelu"))
    return DecoderConfig(vocab_size, dim, (block,) * layers)


@dataclass(frozen=True)
class Chinchilla:
    """A model of Table A4 of Hoffmann et al. 2022, its ratio F / (6 N D) as printed there, and to a digit more."""

    layers: int
    dim: int
    hidden_dim: int
    head_dim: int
    heads: int
    printed: float
    ratio: float

    LENGTH, VOCAB = 2048, 32_000

    @property
    def price(self) -> Cost:
        shape = self.layers, self.dim, self.hidden_dim, self.head_dim, self.heads
        return cost(gelu(*shape, self.VOCAB), self.LENGTH)

    @property
    def parameters(self) -> int:
        """Their count: relative positions have a matrix of their own in every layer, and there are biases.

        Small vectors, 15 dim a layer: four biases of attention, two for relative positions, 4 + 1 of the feed-forward,
        two LayerNorms of two; and one LayerNorm more at the end.
        """
        inner = self.head_dim * self.heads
        layer = 4 * self.dim * inner + 2 * self.dim * self.hidden_dim + self.dim * inner + 15 * self.dim
        return self.VOCAB * self.dim + self.layers * layer + 2 * self.dim


TABLE_A4 = [
    Chinchilla(10, 640, 2560, 64, 10, 1.03, 1.025),
    Chinchilla(20, 1024, 4096, 64, 16, 1.10, 1.101),
    Chinchilla(24, 1280, 5120, 128, 10, 1.08, 1.083),
    Chinchilla(26, 1792, 7168, 128, 14, 1.04, 1.044),
    Chinchilla(28, 2048, 8192, 128, 16, 1.03, 1.033),
    Chinchilla(40, 3584, 14336, 128, 28, 0.99, 0.994),
]


def test_the_smallest_model_of_chinchilla_s_table_to_the_flop() -> None:
    row = TABLE_A4[0]
    assert row.parameters == 73_825_280
    assert row.LENGTH * row.price.training_flops["chinchilla_f"] == 929_877_196_800


@pytest.mark.parametrize("row", TABLE_A4, ids=lambda row: f"{row.layers} layers")
def test_chinchilla_s_table_of_ratios(row: Chinchilla) -> None:
    ratio = row.price.training_flops["chinchilla_f"] / (6 * row.parameters)
    assert (round(ratio, 2), round(ratio, 3)) == (row.printed, row.ratio)


@pytest.mark.parametrize("row", TABLE_A4, ids=lambda row: f"{row.layers} layers")
def test_appendix_f_term_by_term(row: Chinchilla) -> None:
    s, d, inner = row.LENGTH, row.dim, row.head_dim * row.heads
    layer = [
        2 * 3 * s * d * inner,  # queries, keys, values
        2 * s * s * inner,  # scores
        3 * row.heads * s * s,  # softmax
        2 * s * s * inner,  # sum over values
        2 * s * inner * d,  # output projection
        2 * s * (d * row.hidden_dim + d * row.hidden_dim),
    ]
    assert s * row.price.forward_flops["chinchilla_f"] == row.layers * sum(layer)
    assert s * row.price.training_flops["chinchilla_f"] == 3 * row.layers * sum(layer)


def test_nanogpt_s_gpt2_to_the_flop() -> None:
    # transformer_sizing.ipynb of karpathy/nanoGPT: GPT-2 124M at 1024 tokens
    length, positions = 1024, 1024 * 768
    price = cost(gelu(12, 768, 4 * 768, 64, 12, 50_257), length)
    assert length * price.forward_flops["full_square"] == 291_648_307_200
    assert length * price.training_flops["full_square"] == 874_944_921_600
    # 124,337,664 parameters without the table of positions, which multiplies nothing; ours rotates and has none
    assert price.total_parameters == 124_337_664 - positions
    assert length * price.training_flops["palm"] == 875_062_886_400
    assert round(875_062_886_400 / 874_944_921_600, 4) == 1.0001


MOE = MoEConfig(24, num_experts=8, top_k=2, shared_experts=1)
SPARSE = {
    "moe": BlockConfig(AttentionConfig(heads=4, kv_heads=2), MOE),
    "window": BlockConfig(AttentionConfig(heads=4, pattern="Causal() & SlidingWindow(7)"), FeedForwardConfig(40)),
    "moba": BlockConfig(AttentionConfig(heads=4, pattern="MoBA(block=8, top_k=2)"), FeedForwardConfig(40)),
}


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("kind", SPARSE)
def test_what_is_not_in_chinchilla_s_list_counts_as_in_the_full_square(kind: str, tied_head: bool) -> None:
    length, dim, vocab = 64, 32, 50
    price = cost(DecoderConfig(vocab, dim, (SPARSE[kind],) * 3, tied_head), length)
    softmax = 3 * 3 * 4 * length * length
    for flops, passes in ((price.forward_flops, 1), (price.training_flops, 3)):
        square = length * flops["full_square"]
        assert length * flops["chinchilla_f"] == square + passes * (softmax - 2 * length * dim * vocab)


def test_native_sparse_attention_takes_a_softmax_in_each_branch() -> None:
    length, heads = 64, 4
    pattern = "NativeSparse(block=8, top_k=4, compress_block=8, stride=4, window=8)"
    block = BlockConfig(AttentionConfig(heads=heads, pattern=pattern), FeedForwardConfig(40))
    (scores,) = (part for part in cost(DecoderConfig(50, 32, (block,)), length).work if part.kind == "scores")
    windows = (length - 8) // 4 + 1
    assert scores.scores == heads * length * (windows + 2 * length)
    assert scores.square == scores.scores * (8 + 8)  # a product with a key and one with a value


def test_scores_are_those_of_every_batch_row_that_the_pattern_differs_by() -> None:
    ids = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1], [0, 0, 1, 1, 2]])
    work = attention_work(Causal() & Documents(ids), 5, heads=2, head_dim=8)
    assert work.scores == 3 * 2 * 5 * 5
    assert work.square == work.scores * (8 + 8)


def ratios(config: DecoderConfig, length: int, window: int) -> dict[str, float]:
    """How others count the FLOPs of a training step, over the products of visible pairs that there are."""
    price = cost(config, length)

    def of(*kinds: str) -> float:
        return 6 * sum(part.square for part in price.work if part.kind in kinds) / length

    layers, head, square = of("attention", "feed_forward"), of("head"), of("scores")
    counts = {
        "6 N + 12 L H Q T": layers + head + square,  # PaLM, nanoGPT
        "12 L H Q min(T, window)": layers + head + square * min(window, length) / length,  # nanochat, OLMo-core
        "half of 12 L H Q T": layers + head + square / 2,  # Megatron-LM
        "6 N": layers,  # Kaplan et al. 2020 (arXiv 2001.08361), N without embeddings
        "chinchilla_f": price.training_flops["chinchilla_f"],
    }
    return {name: count / price.training_flops["exact"] for name, count in counts.items()}


WINDOW = "Causal() & SlidingWindow({})"


@pytest.mark.parametrize(
    ("config", "length", "window", "expected"),
    [
        (gelu(12, 768, 3072, 64, 12, 50_257), 1024, 1024, (1.071, 1.071, 1.000, 0.639, 0.782)),
        (gelu(12, 768, 3072, 64, 12, 50_257, WINDOW.format(1024)), 16_384, 1024, (3.000, 1.004, 1.936, 0.599, 2.753)),
        (gelu(4, 128, 512, 32, 4, 4096, WINDOW.format(128)), 512, 128, (1.287, 1.011, 1.103, 0.552, 0.928)),
    ],
    ids=["GPT-2", "GPT-2 with a window", "tiny"],
)
def test_how_far_others_lie_from_what_is_exact(
    config: DecoderConfig, length: int, window: int, expected: tuple[float, ...]
) -> None:
    found = ratios(config, length, window)
    assert list(found.values()) == pytest.approx(expected, abs=0.0006), found
