"""Stages, one after another, are the decoder."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

import pytest
import torch
from pipeline_work import KINDS, LENGTH, VOCAB_SIZE, decoder, documents

from toolkit.layers import MoE, auxiliary_losses
from toolkit.models import Decoder
from toolkit.parallel.pipeline import DecoderStage, count_losses, keep_layers

SPLIT = [range(0, 1), range(1, 3), range(3, 4)]


def stages_of(model: Decoder) -> list[DecoderStage]:
    return [DecoderStage(model, layers, count_losses(model), micro_batches=1) for layers in SPLIT]


@pytest.mark.parametrize("told", [{}, {"sequence_ids": documents()}], ids=["plain", "packed"])
@pytest.mark.parametrize(("kind", "changes"), [*((kind, {}) for kind in KINDS), ("dense", {"mup_base_dim": 8})])
def test_stages_in_a_row_give_the_decoders_logits(kind: str, changes: dict, told: dict) -> None:
    model = Decoder(decoder(kind, tied_head=kind == "dense", **changes)).eval()
    ids = torch.randint(VOCAB_SIZE, (8, LENGTH))
    x = ids
    for stage in stages_of(model):
        x = stage(x, input_ids=ids, **told)
    assert torch.equal(x, model(ids, **told).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_each_parameter_is_in_one_stage_and_a_tied_embedding_in_two(tied: bool) -> None:
    model = Decoder(decoder("moe", tied_head=tied))
    held: Counter[str] = Counter()
    for layers in SPLIT:
        part = deepcopy(model)
        keep_layers(part, layers)
        (stage,) = [DecoderStage(part, layers, {}, 1)]
        names = [name for name, _ in part.named_parameters()]
        assert sorted(names) == sorted(name for name, _ in stage.named_parameters())
        held.update(names)
    assert held.keys() == dict(model.named_parameters()).keys()
    assert {name for name, count in held.items() if count > 1} == ({"embedding.weight"} if tied else set())


def test_losses_and_counts_add_up_over_micro_batches_until_they_are_forgotten() -> None:
    model = Decoder(decoder("moe"))
    stage = DecoderStage(model, range(0, 4), count_losses(model), micro_batches=2)
    parts = torch.randint(VOCAB_SIZE, (2, 2, LENGTH))
    losses, counts = [], []
    for ids in parts:
        stage(ids, input_ids=ids)
        losses.append(auxiliary_losses(model)["z"])
        moe = model.get_submodule("blocks.0.feed_forward")
        assert isinstance(moe, MoE)
        counts.append(moe.stats.counts)
    torch.testing.assert_close(stage.auxiliary["z"], torch.stack(losses).mean().detach())
    assert torch.equal(stage.stats["blocks.0.feed_forward"].counts, torch.stack(counts).sum(0))
    stage.reset()
    assert not stage.auxiliary and not stage.stats
    model.eval()
    stage(parts[0], input_ids=parts[0])
    assert not stage.auxiliary
    assert torch.equal(stage.stats["blocks.0.feed_forward"].counts, moe.stats.counts)
