"""What a decoder's masks say it reaches is what its gradients reach: exactly zero beyond, not zero within."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from toolkit.attention import parse_pattern
from toolkit.attention.reach import reach
from toolkit.attention.selection import parse_sparsity
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig

LENGTH, LAYERS, WIDTH = 24, 3, 3
CUT = LAYERS * (WIDTH - 1)
W = f"SlidingWindow({WIDTH})"
SLIDING = f"Causal() & {W}"
RANDOM = "Causal() & (SlidingWindow(3) | RandomBlocks(per_query_block=1, block=4, seed={}, causal=True))"
STACKS: dict[str, list[str]] = {
    "full": ["Causal()"] * 3,
    "sliding": [SLIDING] * 3,
    "last-full": [SLIDING, SLIDING, "Causal()"],
    "sinks": [f"Causal() & ({W} | Sinks(2))"] * 3,
    "globals-at-the-start": [f"Causal() & ({W} | GlobalTokens(positions=[0, 1]))"] * 3,
    "globals-scattered": [f"Causal() & ({W} | GlobalTokens(positions=[5, 11, 17]))"] * 3,
    "dilated": [SLIDING, "Causal() & DilatedWindow(3, 2)", "Causal() & DilatedWindow(3, 4)"],
    "strided": ["Causal() & Strided(6)"] * 2,
    "random-blocks": [RANDOM.format(seed) for seed in (1, 2)],
}
SELECTIONS = {
    "moba": ["MoBA(block=4, top_k=2)"] * 2,
    "native-sparse": ["NativeSparse(block=4, top_k=3, compress_block=4, stride=2, window=3, initial=1, local=1)"] * 2,
    "native-sparse-one-layer": [
        "NativeSparse(block=4, top_k=2, compress_block=8, stride=4, window=3, initial=0, local=1)"
    ],
}


def gradients(texts: list[str]) -> Tensor:
    """The largest gradient of each position's logits to each position's embedding: (LENGTH, LENGTH)."""
    return _gradients(tuple(texts))


@cache
def _gradients(texts: tuple[str, ...]) -> Tensor:
    torch.manual_seed(0)
    block = tuple(
        BlockConfig(AttentionConfig(heads=2, pattern=text), FeedForwardConfig(hidden_dim=16)) for text in texts
    )
    decoder = Decoder(DecoderConfig(vocab_size=11, dim=16, blocks=block)).double()
    held: list[Tensor] = []
    decoder.embedding.register_forward_hook(lambda _module, _inputs, output: held.append(output))
    logits = decoder(torch.randint(11, (1, LENGTH))).logits[0]
    direction = torch.randn(11, dtype=torch.float64)
    rows = [torch.autograd.grad(logits[i] @ direction, held[0], retain_graph=True)[0][0] for i in range(LENGTH)]
    return torch.stack([row.abs().amax(dim=-1) for row in rows])


@pytest.mark.parametrize("name", STACKS)
def test_gradients_are_exactly_zero_beyond_reach_and_not_within(name: str) -> None:
    reached = reach([parse_pattern(text) for text in STACKS[name]], LENGTH)
    assert torch.equal(gradients(STACKS[name]) != 0, reached)


@pytest.mark.parametrize("name", SELECTIONS)
def test_content_chosen_keys_have_gradients_where_it_is_certain_and_none_in_the_future(name: str) -> None:
    """Of blocks that may be chosen or not nothing is said: without a gradient they still tell by not being chosen."""
    layers = [parse_sparsity(text) for text in SELECTIONS[name]]
    seen = gradients(SELECTIONS[name]) != 0
    assert seen[reach(layers, LENGTH, certain=True)].all()
    assert not seen[~reach(layers, LENGTH)].any()


def pair_gradients(name: str, distance: int) -> list[bool]:
    """Whether the last logits have a gradient to the key and to the value of a pair at this distance."""
    key = LENGTH - 1 - distance
    return (gradients(STACKS[name])[-1, key : key + 2] != 0).tolist()


@pytest.mark.parametrize("name", ["sliding", "sinks", "globals-at-the-start"])
def test_sinks_and_leading_globals_do_not_help_a_window(name: str) -> None:
    """The pairs at the sinks themselves aside, which every query sees."""
    assert pair_gradients(name, CUT) == [True, True]
    assert pair_gradients(name, CUT + 1) == [False, True]  # the value alone: not which of those seen it is
    for distance in range(CUT + 2, LENGTH - 2):
        assert pair_gradients(name, distance) == [False, False]


@pytest.mark.parametrize("name", ["last-full", "globals-scattered"])
def test_a_full_last_layer_and_scattered_globals_reach_every_pair(name: str) -> None:
    for distance in range(2, LENGTH):
        assert pair_gradients(name, distance) == [True, True]


def test_a_global_before_the_pair_is_no_relay() -> None:
    texts = [f"Causal() & ({W} | GlobalTokens(positions=[4]))"] * LAYERS
    seen = gradients(texts) != 0
    assert not seen[-1, 5 : LENGTH - 1 - CUT].any()  # pairs after the only global
    assert seen[-1, :5].all()  # pairs before it


def test_random_blocks_of_another_seed_reach_others() -> None:
    """That the zeros above are those of the drawn blocks, not of any."""
    other = [RANDOM.format(seed) for seed in (3, 4)]
    assert not torch.equal(gradients(other) != 0, gradients(STACKS["random-blocks"]) != 0)
