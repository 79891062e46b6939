"""Small models trained on induction at mixed distances know what their masks lead to, and guess beyond.

Three layers of window 5 reach 12 tokens back: a pair 14 away is not seen at all. Of one 13 away the value alone is,
which can be told by elimination, as a row has as many pairs as there are keys.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from scipy import stats

from toolkit.data.synthetic import SparseInduction, score
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig
from toolkit.training import TrainingConfig
from toolkit.training.task_training import train_on_task

LENGTH, LAYERS, WIDTH = 32, 3, 5
CUT = LAYERS * (WIDTH - 1)
WITHIN, BEYOND = (4, 8), (CUT + 2, 20, 28)  # the pairs at the sinks themselves would be 30 and 31 back
W = f"SlidingWindow({WIDTH})"
SLIDING = f"Causal() & {W}"
ROWS = 300
STACKS = {
    "sliding": [SLIDING] * LAYERS,
    "sinks": [f"Causal() & ({W} | Sinks(2))"] * LAYERS,
    "globals-at-the-start": [f"Causal() & ({W} | GlobalTokens(positions=[0, 1]))"] * LAYERS,
    "last-full": [SLIDING, SLIDING, "Causal()"],
    "globals-scattered": [f"Causal() & ({W} | GlobalTokens(positions=[3, 7, 11, 15, 19, 23, 27]))"] * LAYERS,
}
STEPS = {"sliding": 60, "sinks": 60, "globals-at-the-start": 60, "last-full": 200, "globals-scattered": 420}


def task(distance: int | tuple[int, int]) -> SparseInduction:
    return SparseInduction(LENGTH, distance, pairs=3, questions=3, keys=3, values=8, fillers=1)


@cache
def trained(name: str) -> Decoder:
    torch.manual_seed(0)
    attention = (AttentionConfig(heads=4, pattern=text) for text in STACKS[name])
    blocks = tuple(BlockConfig(one, FeedForwardConfig(hidden_dim=96)) for one in attention)
    mixed = task((3, LENGTH - 1))
    decoder = Decoder(DecoderConfig(mixed.vocab_size, 48, blocks))
    config = TrainingConfig(STEPS[name], context=LENGTH, batch_size=32, learning_rate=5e-3)
    train_on_task(decoder, mixed, config)
    return decoder.eval()


def right(name: str, distance: int) -> int:
    """How many of ROWS last questions are answered rightly at this distance."""
    decoder = trained(name)
    correct = score(lambda ids: decoder(ids).logits, task(distance), ROWS, seed=99, batch_size=100).correct
    return int(correct[:, -1].sum())


@pytest.mark.parametrize("name", ["sliding", "sinks", "globals-at-the-start"])
def test_beyond_the_window_there_is_chance_and_within_it_the_answer(name: str) -> None:
    """Chance lies in an exact binomial interval that one true figure in 10,000 leaves."""
    for distance in WITHIN:
        assert right(name, distance) > 0.8 * ROWS
    for distance in BEYOND:
        interval = stats.binomtest(right(name, distance), ROWS).proportion_ci(0.9999)
        assert interval.low <= task(distance).chance <= interval.high


@pytest.mark.parametrize("name", ["last-full", "globals-scattered"])
def test_a_full_last_layer_or_scattered_globals_know_every_distance(name: str) -> None:
    for distance in (*WITHIN, *BEYOND):
        assert right(name, distance) > 0.8 * ROWS
