"""Counts are those of a loop over tokens; information is 0 of a die and the entropy of the loads of a hash."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit.layers import MoE
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.scaling.specialisation import (
    LayerSpecialisation,
    load_specialisation,
    measure_specialisation,
    run_specialisation,
    trained_decoder,
)

VOCABULARY, EXPERTS = 24, 6


def config(router: str | None = None, top_k: int = 2, depth: float | None = None) -> DecoderConfig:
    block = BlockConfig(AttentionConfig(2, 1, 4), MoEConfig(8, EXPERTS, top_k, router=router), depth)
    dense = BlockConfig(AttentionConfig(2, 1, 4), FeedForwardConfig(16))
    return DecoderConfig(VOCABULARY, 8, (block, dense, block))


def decoder(*settings, **more) -> Decoder:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    return Decoder(config(*settings, **more))


def windows(count: int = 50, context: int = 16) -> torch.Tensor:
    """Ids that are not equally common."""
    generator = torch.Generator().manual_seed(1)
    return (VOCABULARY * torch.rand(count, context + 1, generator=generator) ** 2).long()


def of_selection(chosen: np.ndarray, ids: np.ndarray, vocabulary: int) -> LayerSpecialisation:
    """From bool (tokens, experts) and the tokens' ids."""
    counts = np.zeros((chosen.shape[1], vocabulary), dtype=np.int64)
    np.add.at(counts.T, ids, chosen)
    return LayerSpecialisation(
        counts, np.bincount(ids, minlength=vocabulary), chosen.T.astype(int) @ chosen.astype(int)
    )


def test_counts_are_those_of_a_loop_over_tokens() -> None:
    model, text = decoder(), windows()
    layers = measure_specialisation(model, text, batch_size=7)
    assert list(layers) == ["layer0", "layer2"]
    with torch.no_grad():
        model.eval()(text[:, :-1])
    for name, at in (("layer0", 0), ("layer2", 2)):
        moe = model.blocks[at].feed_forward
        assert isinstance(moe, MoE)
        pairs, single, seen = Counter(), Counter(), Counter()  # type: ignore[var-annotated]
        for token, experts in zip(text[:, :-1].flatten().tolist(), moe.assignment.indices.tolist(), strict=True):
            seen[token] += 1
            single.update((expert, token) for expert in experts)
            pairs.update(combinations(sorted(experts), 2))
        layer = layers[name]
        assert {cell: layer.counts[cell] for cell in zip(*layer.counts.nonzero(), strict=True)} == single
        assert {token: layer.occurrences[token] for token in layer.occurrences.nonzero()[0]} == seen
        assert {(i, j): layer.pairs[i, j] for i, j in combinations(range(EXPERTS), 2) if layer.pairs[i, j]} == pairs
        assert (np.diagonal(layer.together) == layer.counts.sum(1)).all()
        assert (layer.pairs == layer.pairs.T).all()


def test_the_decoder_is_left_as_it_was() -> None:
    model = decoder().train()
    measure_specialisation(model, windows(4))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_a_hash_of_the_token_tells_all_there_is() -> None:
    """One expert for each id: I(expert; id) = H(expert), which the table and the ids' frequencies give."""
    model, text = decoder("HashRouter()", top_k=1), windows()
    table = model.blocks[0].feed_forward.router.table[:, 0]  # type: ignore[union-attr,index]
    load = torch.bincount(table[text[:, :-1].flatten()], minlength=EXPERTS) / text[:, :-1].numel()
    entropy = -sum(share * math.log2(share) for share in load.tolist() if share)
    layer = measure_specialisation(model, text)["layer0"]
    assert layer.mutual_information == pytest.approx(layer.ceiling, abs=1e-12)
    correction = ((load > 0).sum().item() - 1) / (2 * text[:, :-1].numel() * math.log(2))
    assert layer.mutual_information == pytest.approx(entropy + correction, abs=1e-6)


def test_of_two_experts_for_each_token_their_order_is_left_open() -> None:
    """The ceiling is H(expert) - log2 2; the correction takes half a bit's worth of each id from the estimate."""
    layer = measure_specialisation(decoder("HashRouter()"), windows())["layer0"]
    share = layer.counts.sum(1) / layer.counts.sum()
    assert layer.ceiling == pytest.approx(-(share * np.log2(share)).sum() - 1, abs=0.01)
    ids, choices = (layer.occurrences > 0).sum(), layer.counts.sum()
    assert layer.ceiling - layer.mutual_information == pytest.approx(ids / (2 * choices * math.log(2)), abs=1e-9)


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_die_tells_nothing(top_k: int) -> None:
    """Corrected estimates scatter around 0, where the plug-in estimate is too high by (ids - 1)(experts - 1) / 2n."""
    rng, tokens, found = np.random.default_rng(0), 4000, []
    for _ in range(20):
        ids = rng.integers(40, size=tokens)
        chosen = rng.random((tokens, EXPERTS)).argsort(1) < top_k
        found.append(of_selection(chosen, ids, 40).mutual_information)
    plug_in_bias = 39 * (EXPERTS - 1) / (2 * tokens * top_k * math.log(2))
    without_replacement = -39 * (top_k - 1) / (2 * tokens * top_k * math.log(2))
    assert np.mean(found) == pytest.approx(without_replacement, abs=0.1 * plug_in_bias)


def test_information_of_a_known_channel() -> None:
    """Expert = id's parity with probability 0.9: I = 1 - h(0.1), h the binary entropy."""
    rng = np.random.default_rng(0)
    ids = rng.integers(8, size=200_000)
    expert = (ids + (rng.random(len(ids)) < 0.1)) % 2
    layer = of_selection(np.eye(2, dtype=bool)[expert], ids, 8)
    truth = 1 + 0.1 * math.log2(0.1) + 0.9 * math.log2(0.9)
    assert layer.mutual_information == pytest.approx(truth, abs=0.005)


def test_lift_is_a_ratio_of_probabilities() -> None:
    layer = measure_specialisation(decoder(), windows())["layer2"]
    seen, load = layer.counts.sum(0) > 0, layer.counts.sum(1) / layer.counts.sum()
    given = layer.counts[:, seen] / layer.counts[:, seen].sum(0)
    np.testing.assert_allclose(layer.lift[:, seen], given / load[:, None])
    assert np.isnan(layer.lift[:, ~seen]).all()


def test_pairs_that_form_independently_have_a_lift_of_one() -> None:
    """Goodman's model: a_i a_j off the diagonal, whatever the experts' popularity."""
    popularity = np.array([1, 2, 3, 5, 8])
    pairs = 1000 * np.outer(popularity, popularity)
    layer = LayerSpecialisation(np.ones((5, 1), int), np.ones(1, int), pairs)
    off = ~np.eye(5, dtype=bool)
    np.testing.assert_allclose(layer.pair_lift[off], 1, rtol=1e-9)
    assert np.isnan(np.diagonal(layer.pair_lift)).all()
    favoured = pairs + 20_000 * np.array([[0, 1], [1, 0]])[np.ix_([0, 1, 0, 0, 0], [0, 1, 0, 0, 0])]
    lift = LayerSpecialisation(np.ones((5, 1), int), np.ones(1, int), favoured).pair_lift
    assert lift[0, 1] > 1 > lift[0, 4]


def test_an_expert_without_pairs_has_no_lift() -> None:
    pairs = np.ones((4, 4), dtype=int)
    pairs[3] = pairs[:, 3] = 0
    lift = LayerSpecialisation(np.ones((4, 1), int), np.ones(1, int), pairs).pair_lift
    assert np.isnan(lift[3]).all()
    np.testing.assert_allclose(lift[:3, :3][~np.eye(3, dtype=bool)], 1)


def test_only_tokens_that_reach_a_layer_are_counted() -> None:
    """A mixture-of-depths layer passes some of them by; those it takes keep their ids."""
    model, text = decoder("HashRouter()", top_k=1, depth=0.5), windows()
    layers = measure_specialisation(model, text)
    assert len(layers) == 2
    for found, at in zip(layers.values(), (0, 2), strict=True):
        assert 0 < found.occurrences.sum() < text[:, :-1].numel()
        moe = next(module for module in model.blocks[at].modules() if isinstance(module, MoE))
        table = moe.router.table[:, 0].numpy()  # type: ignore[union-attr,index,operator]
        assert (found.counts[table, np.arange(VOCABULARY)] == found.occurrences).all()


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    model, text = decoder().double(), windows()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"model": model.config.to_dict()}))
    weights = {f"decoder.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 0}, tmp_path / "checkpoints" / "last.ckpt")
    read = trained_decoder(tmp_path)
    assert not read.training
    for name, value in read.state_dict().items():
        assert value.dtype == model.state_dict()[name].dtype
        assert torch.equal(value, model.state_dict()[name])
    found = run_specialisation(tmp_path, text)
    kept = load_specialisation(tmp_path / "specialisation.npz")
    expected = measure_specialisation(model, text)
    assert list(found) == list(kept) == list(expected)
    for name, layer in expected.items():
        for part, value in vars(layer).items():
            assert np.array_equal(getattr(kept[name], part), value)
            assert np.array_equal(getattr(found[name], part), value)


def test_what_cannot_be_measured_is_refused() -> None:
    dense = DecoderConfig(VOCABULARY, 8, (BlockConfig(AttentionConfig(2, 1, 4), FeedForwardConfig(8)),))
    with pytest.raises(ValueError, match="decoder"):
        measure_specialisation(Decoder(dense), windows(2))
    with pytest.raises(ValueError, match=r"windows\.shape"):
        measure_specialisation(decoder(), windows(2)[:, :1])
