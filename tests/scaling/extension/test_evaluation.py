"""Scores of a small random decoder against loops over single tokens."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data import ByteTokenizer, Document, LongFiles
from toolkit.data.synthetic import Passkey
from toolkit.models import Decoder
from toolkit.scaling.extension.evaluation import (
    PASSKEY,
    PASSKEY_TOKENS,
    POSITION,
    SEED,
    SLIDING,
    EvaluationConfig,
    Score,
    evaluate,
    position_edges,
    scored_tokens,
    text_blocks,
)
from toolkit.scaling.extension.plan import ExtensionModel

FIRST, TRAINED, LONGEST = 40, 16, 64
KEYS = Passkey(length=TRAINED, digits=1, words=4)
MODEL = ExtensionModel(dim=16, layers=1, heads=1, feed_forward_dim=16)
CONFIG = EvaluationConfig(blocks=3, depths=(0.0, 0.5), rows=9, batch_tokens=96)


def decoder(scaling: str | None = None) -> Decoder:
    torch.manual_seed(0)
    return Decoder(MODEL.decoder(FIRST + KEYS.vocab_size, scaling)).double()


def blocks() -> torch.Tensor:
    return torch.randint(FIRST, (CONFIG.blocks, LONGEST + 1), generator=torch.Generator().manual_seed(1))


SIZES = torch.arange(FIRST) % 3 + 1


def scores(model: Decoder, length: int) -> list[Score]:
    return evaluate(model, length, TRAINED, blocks(), SIZES, KEYS, FIRST, CONFIG)


def bits(model: Decoder, context: torch.Tensor, target: int) -> float:
    """-log2 of the probability of ``target`` after ``context`` (length,)."""
    with torch.no_grad():
        return float(-torch.log_softmax(model.eval()(context[None]).logits[0, -1], dim=-1)[target] / math.log(2))


@pytest.mark.parametrize("length", [16, 32, 64])
@pytest.mark.parametrize("scaling", [None, "YaRNScaling(factor=4.0, original_length=16)"])
def test_loss_by_position_is_that_of_single_tokens(length: int, scaling: str | None) -> None:
    model = decoder(scaling)
    found = {score.at: score for score in scores(model, length) if score.metric == POSITION}
    text = blocks()
    edges = position_edges(TRAINED, length)
    assert list(found) == [f"{low}-{high}" for low, high in pairwise(edges)]
    for low, high in pairwise(edges):
        total = size = count = 0.0
        for block in text:
            for start in range(0, LONGEST, length):
                for place in range(low, high):
                    target = int(block[start + place + 1])
                    total += bits(model, block[start : start + place + 1], target)
                    size += float(SIZES[target])
                    count += 1
        assert found[f"{low}-{high}"].value == pytest.approx(total / size)
        assert found[f"{low}-{high}"].rows == count


@pytest.mark.parametrize("length", [16, 64])
def test_the_sliding_loss_is_that_of_single_tokens(length: int) -> None:
    model = decoder()
    (found,) = (score for score in scores(model, length) if score.metric == SLIDING)
    total = size = 0.0
    for block in blocks():
        for target in range(1, LONGEST + 1):
            new = 0 if target <= length else -(-(target - length) // (length // 2)) * (length // 2)
            start = min(new, LONGEST - length)
            total += bits(model, block[start:target], int(block[target]))
            size += float(SIZES[block[target]])
    assert found.value == pytest.approx(total / size)
    assert found.rows == CONFIG.blocks * LONGEST


@pytest.mark.parametrize("length", [16, 32])
def test_passkeys_are_found_where_the_likeliest_of_all_ids_is_the_digit(length: int) -> None:
    """A model whose head is drawn so that digits are likely: a text id that is likelier still counts as a miss."""
    model = decoder()
    with torch.no_grad():
        model.embedding.weight[FIRST : FIRST + 10] *= 3
    found = {score.at: score for score in scores(model, length) if score.metric == PASSKEY}
    for depth in CONFIG.depths:
        batch = Passkey(length, depth, KEYS.digits, KEYS.words).sample(CONFIG.rows, SEED)
        right = 0
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
            with torch.no_grad():
                logits = model.eval()(ids[None] + FIRST).logits[0, -1]
            right += int(logits.argmax()) == int(labels[-1]) + FIRST
        assert found[f"{depth:g}"].value == pytest.approx(right / CONFIG.rows)
        assert found[f"{depth:g}"].rows == CONFIG.rows


def test_with_one_digit_a_whole_key_is_its_token() -> None:
    each = scores(decoder(), 16)
    whole = [score.value for score in each if score.metric == PASSKEY]
    assert whole == [score.value for score in each if score.metric == PASSKEY_TOKENS]


def test_the_decoder_s_mode_is_what_it_was() -> None:
    model = decoder().train()
    scores(model, 16)
    assert model.training


def test_tokens_that_went_through_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    model = decoder()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].numel()))
    for length, expected in scored_tokens([16, 32, 64], CONFIG).items():
        seen.clear()
        scores(model, length)
        assert sum(seen) == expected


@given(st.sampled_from([4, 16, 100]), st.integers(1, 6))
def test_buckets_tile_the_context_and_part_at_every_doubling(trained: int, doublings: int) -> None:
    length = trained * 2**doublings
    edges = position_edges(trained, length)
    assert edges[0] == 0
    assert edges[-1] == length
    assert edges == sorted(set(edges))
    assert {trained * 2**power for power in range(doublings)} <= set(edges)


def files(*lengths: int) -> LongFiles:
    """Files whose bytes count on from one to the next."""
    start, documents = 0, []
    for number, length in enumerate(lengths):
        text = "".join(chr(33 + (start + place) % 90) for place in range(length))
        documents.append(Document(f"{number}", text))
        start += length
    return LongFiles((), tuple(documents))


@given(st.lists(st.integers(5, 60), min_size=1, max_size=4), st.integers(1, 9), st.data())
def test_blocks_lie_within_a_file_and_share_no_target(lengths: list[int], length: int, data: st.DataObject) -> None:
    most = sum((size - 1) // length for size in lengths)
    if most == 0:
        return
    count = data.draw(st.integers(1, most))
    found = text_blocks(files(*lengths), ByteTokenizer(), length, count)
    assert found.shape == (count, length + 1)
    texts = [document.text for document in files(*lengths).validation]
    assert all(any(bytes(block.tolist()).decode() in text for text in texts) for block in found)
    if most == count:  # all there is, in order, every target once
        targets = np.concatenate([block[1:] for block in found.numpy()]).tolist()
        whole = [ord(char) for text in texts for char in text[1 : (len(text) - 1) // length * length + 1]]
        assert targets == whole
    with pytest.raises(ValueError, match=f"evaluation.blocks={most + 1}: it must be at most {most}"):
        text_blocks(files(*lengths), ByteTokenizer(), length, most + 1)


def test_settings_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="depths=.*different, between 0 and 1"):
        EvaluationConfig(depths=(0.0, 1.5))
    with pytest.raises(ValueError, match="rows=0: it must be positive"):
        EvaluationConfig(rows=0)
