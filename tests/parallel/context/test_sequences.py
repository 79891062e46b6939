"""A decoder takes what is known of its tokens in place of what it would find out itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from toolkit.attention import KeyValueCache
from toolkit.layers import Sequences
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig

IDS = torch.arange(12).view(2, 6)
PACKED = torch.tensor([[0, 0, 0, 1, 1, -1], [0, 1, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    block = BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(hidden_dim=8))
    return Decoder(DecoderConfig(vocab_size=12, dim=16, blocks=(block,)))


def test_sequences_say_the_same_as_what_they_are_made_of(decoder: Decoder) -> None:
    known = Sequences.of(IDS, sequence_ids=PACKED)
    assert torch.equal(decoder(IDS, sequences=known).logits, decoder(IDS, sequence_ids=PACKED).logits)


def test_positions_are_what_the_rotary_embedding_turns_by(decoder: Decoder) -> None:
    """Distances are all that it knows: moved together nothing changes, pulled apart something does."""
    at = torch.arange(6).expand(2, -1)
    moved, apart = (decoder(IDS, sequences=Sequences(IDS, positions=where)).logits for where in (at + 9, 2 * at))
    torch.testing.assert_close(moved, decoder(IDS).logits)
    assert (apart - decoder(IDS).logits).abs().max() > 1e-3


def test_sequences_stand_alone(decoder: Decoder) -> None:
    known = Sequences.of(IDS)
    for beside in ({"valid": IDS >= 0}, {"sequence_ids": PACKED}, {"cache": KeyValueCache()}):
        with pytest.raises(ValueError, match="sequences='given': it must be None beside"):
            decoder(IDS, sequences=known, **beside)
    with pytest.raises(ValueError, match="sequences.token_ids=None: it must be input_ids, 0 for padding"):
        decoder(IDS, sequences=replace(known, token_ids=None))
    with pytest.raises(ValueError, match="positions.shape"):
        decoder(IDS, sequences=Sequences(IDS, positions=torch.arange(5).expand(2, -1)))
