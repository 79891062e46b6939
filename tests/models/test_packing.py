"""Padding and packed documents through the whole decoder: each document is what it is alone, padding is nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.attention import KeyValueCache
from toolkit.attention.plan import _held
from toolkit.layers import MixtureOfDepths, MoE, Sequences, auxiliary_losses
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.routing import Balancer, SoftRouter

VOCAB, PAD = 30, -100
PATTERNS = ["Causal()", "Causal() & SlidingWindow(3)", "Causal() & (SlidingWindow(3) | Sinks(1))"]
LOSSES = "losses=[LoadBalancingLoss(0.3), LoadBalancingLoss(0.2, over='sequence'), RouterZLoss(0.1)]"
FEED_FORWARDS = {
    "dense": FeedForwardConfig(12),
    "moe": MoEConfig(12, 4, 2, shared_experts=1, router=f"TopKRouter(balancer=BiasBalancer(), {LOSSES})"),
}
PER_SEQUENCE = {
    "expert choice": MoEConfig(12, 4, 2, router="ExpertChoiceRouter()"),
    "capacity": MoEConfig(12, 4, 2, adjust=("Capacity(0.7, per='sequence')",)),
    "hash": MoEConfig(12, 4, 2, router="HashRouter()"),
}
# Two rows of documents, by row; the last of the first row and the first of the second have the same id.
LENGTHS = [[5, 1, 6], [4, 8]]
IDS = [[2, 7, 0], [0, 2]]
AROUND = [[2, 0, 1, 1], [0, 2, 2]]
"""Padding before, between and after the documents of each row."""

Losses = dict[str, Tensor]


def build(
    feed_forward: FeedForwardConfig | MoEConfig, pattern: str = PATTERNS[0], depth_capacity: float | None = None
) -> Decoder:
    """Two layers, in fp64 and training mode; the second is a mixture of depths with ``depth_capacity``."""
    attention = AttentionConfig(heads=2, kv_heads=1, pattern=pattern, qk_norm=True, sinks=True)
    blocks = tuple(BlockConfig(attention, feed_forward, capacity) for capacity in (None, depth_capacity))
    decoder = Decoder(DecoderConfig(VOCAB, 16, blocks)).double()
    for layer in decoder.blocks:
        if isinstance(layer, MixtureOfDepths):
            torch.nn.init.constant_(layer.router.predictor_down_bias, 0.3)
    return decoder


def documents() -> list[list[Tensor]]:
    return [[torch.randint(VOCAB, (length,)) for length in row] for row in LENGTHS]


def packed(rows: list[list[Tensor]], around: list[list[int]] | None = None) -> tuple[Tensor, Tensor]:
    """input_ids and sequence_ids (batch, length); ``around`` is padding, of ids that no vocabulary has."""
    tokens, ids = [], []
    for row, names, gaps in zip(rows, IDS, around or [[0] * 4, [0] * 3], strict=True):
        pieces = [torch.full((gaps[0],), PAD)]
        marks = [torch.full((gaps[0],), -1)]
        for document, name, gap in zip(row, names, gaps[1:], strict=True):
            pieces += [document, torch.full((gap,), PAD)]
            marks += [torch.full_like(document, name), torch.full((gap,), -1)]
        tokens.append(torch.cat(pieces))
        ids.append(torch.cat(marks))
    return torch.stack(tokens), torch.stack(ids)


def padded(rows: list[Tensor], left: list[int], length: int) -> tuple[Tensor, Tensor]:
    """input_ids and valid (batch, length): each row after ``left`` tokens of padding, padding after it."""
    tokens, valid = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.bool)
    for n, (row, start) in enumerate(zip(rows, left, strict=True)):
        tokens[n, start : start + len(row)], valid[n, start : start + len(row)] = row, True
    return tokens, valid


def gradients(decoder: Decoder, logits: Tensor, weights: Tensor, losses: Losses) -> dict[str, Tensor]:
    """Of a weighted sum of logits (tokens, vocab) and the losses, by parameter."""
    decoder.zero_grad(set_to_none=True)
    ((logits * weights).sum() + sum(losses.values(), torch.zeros(()))).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in decoder.named_parameters()}


def total(gradients: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: sum(one[name] for one in gradients) for name in gradients[0]}


def assert_same(mine: Any, theirs: Any) -> None:
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def alone(
    decoder: Decoder, rows: list[list[Tensor]], weights: Tensor, share: Callable[[str, int], float]
) -> tuple[Tensor, Losses, dict[str, Tensor]]:
    """Each document by itself: logits one after another; losses and gradients added up, losses times their share."""
    logits, losses, found, start = [], [], [], 0
    for document in (document for row in rows for document in row):
        out = decoder(document[None]).logits[0]
        own = {name: share(name, len(document)) * loss for name, loss in auxiliary_losses(decoder).items()}
        found.append(gradients(decoder, out, weights[start : start + len(document)], own))
        logits.append(out.detach())
        losses.append({name: loss.detach() for name, loss in own.items()})
        start += len(document)
    return torch.cat(logits), total(losses) if losses[0] else {}, total(found)


def mean_over(rows: list[list[int]]) -> Callable[[str, int], float]:
    """What a document's own loss counts for: losses over sequences are means over those, others over tokens."""
    count, tokens = sum(map(len, rows)), sum(map(sum, rows))
    return lambda name, length: 1 / count if name == "sequence_balance" else length / tokens


@pytest.mark.parametrize("around", [None, AROUND], ids=["packed", "packed and padded"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", FEED_FORWARDS)
def test_a_packed_document_is_what_it_is_alone(kind: str, pattern: str, around: list[list[int]] | None) -> None:
    decoder, rows = build(FEED_FORWARDS[kind], pattern), documents()
    input_ids, sequence_ids = packed(rows, around)
    weights = torch.randn(sum(map(sum, LENGTHS)), VOCAB, dtype=torch.float64)
    everything = decoder(input_ids, sequence_ids=sequence_ids).logits
    assert everything.isfinite().all()
    mine = everything[sequence_ids >= 0]
    losses = auxiliary_losses(decoder)
    losses.pop("balance", None)  # over the batch: what it is of all documents is no sum of what it is of each
    found = gradients(decoder, mine, weights, losses)

    def share(name: str, length: int) -> float:
        return 0.0 if name == "balance" else mean_over(LENGTHS)(name, length)

    logits, expected, theirs = alone(decoder, rows, weights, share)
    expected.pop("balance", None)
    assert set(losses) == (set() if kind == "dense" else {"sequence_balance", "z"})
    assert_same(mine, logits)
    assert_same({name: loss.detach() for name, loss in losses.items()}, expected)
    assert_same(found, theirs)


@pytest.mark.parametrize("name", PER_SEQUENCE)
def test_what_routers_decide_for_a_sequence_they_decide_for_a_document(name: str) -> None:
    decoder, rows = build(PER_SEQUENCE[name]), documents()
    for around in (None, AROUND):
        input_ids, sequence_ids = packed(rows, around)
        mine = decoder(input_ids, sequence_ids=sequence_ids).logits[sequence_ids >= 0]
        assert_same(mine, torch.cat([decoder(document[None]).logits[0] for row in rows for document in row]))


@pytest.mark.parametrize("around", [None, AROUND], ids=["packed", "packed and padded"])
def test_packing_is_a_batch_of_the_documents_in_every_loss_and_statistic(around: list[list[int]] | None) -> None:
    decoder, rows = build(FEED_FORWARDS["moe"], PATTERNS[2]), documents()
    flat = [document for row in rows for document in row]
    weights = torch.randn(sum(map(sum, LENGTHS)), VOCAB, dtype=torch.float64)
    input_ids, sequence_ids = packed(rows, around)
    rowwise, valid = padded(flat, [0] * len(flat), max(map(len, flat)))
    seen = []
    for tokens, told, real in (
        (input_ids, {"sequence_ids": sequence_ids}, sequence_ids >= 0),
        (rowwise, {"valid": valid}, valid),
    ):
        forget(decoder)
        seen.append(everything_about(decoder, tokens, told, real, weights))
    assert_same(*seen)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", FEED_FORWARDS)
@pytest.mark.parametrize("left", [[0, 0, 0], [4, 4, 4], [1, 4, 0]], ids=["right", "left", "both"])
def test_padding_changes_nothing_of_the_other_tokens(kind: str, pattern: str, left: list[int]) -> None:
    decoder, rows = build(FEED_FORWARDS[kind], pattern), torch.randint(VOCAB, (3, 7))
    weights = torch.randn(21, VOCAB, dtype=torch.float64)
    plain = everything_about(decoder, rows, {}, torch.ones_like(rows, dtype=torch.bool), weights)
    input_ids, valid = padded(list(rows), left, 11)
    forget(decoder)
    assert_same(everything_about(decoder, input_ids, {"valid": valid}, valid, weights), plain)
    named = torch.where(valid, 5, -1)
    for told in ({"sequence_ids": named}, {"valid": valid, "sequence_ids": torch.full_like(named, 5)}):
        forget(decoder)
        assert_same(everything_about(decoder, input_ids, told, valid, weights), plain)


@pytest.mark.parametrize("kind", FEED_FORWARDS)
def test_no_gradient_depends_on_the_ids_of_padding(kind: str) -> None:
    decoder, weights = build(FEED_FORWARDS[kind]), torch.randn(21, VOCAB, dtype=torch.float64)
    input_ids, valid = padded(list(torch.randint(VOCAB, (3, 7))), [1, 4, 0], 11)
    found = []
    for other in (0, 3, -1, 10**9):
        forget(decoder)
        tokens = torch.where(valid, input_ids, other)
        found.append(everything_about(decoder, tokens, {"valid": valid}, valid, weights)["gradients"])
    for one in found[1:]:
        assert all(torch.equal(one[name], found[0][name]) for name in one)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("around", [None, AROUND], ids=["packed", "packed and padded"])
@pytest.mark.parametrize("pattern", PATTERNS[1:])
def test_a_layer_that_some_tokens_pass_by_chooses_from_each_document(
    pattern: str, around: list[list[int]] | None, training: bool
) -> None:
    decoder = build(FEED_FORWARDS["moe"], pattern, depth_capacity=0.4).train(training)
    rows = documents()
    input_ids, sequence_ids = packed(rows, around)
    weights = torch.randn(sum(map(sum, LENGTHS)), VOCAB, dtype=torch.float64)
    mine = decoder(input_ids, sequence_ids=sequence_ids).logits[sequence_ids >= 0]
    depth = {name: loss for name, loss in auxiliary_losses(decoder).items() if name == "depth"}
    selected = decoder.blocks[1].choice.selected
    assert not selected[sequence_ids < 0].any()
    assert 0 < decoder.blocks[1].stats.selected < 1
    assert int(decoder.blocks[1].stats.tokens) == int((sequence_ids >= 0).sum())
    if training:
        chosen = [int(selected[n][sequence_ids[n] == name].sum()) for n, row in enumerate(IDS) for name in row]
        assert chosen == [-(-2 * length // 5) for row in LENGTHS for length in row]
    found = gradients(decoder, mine, weights, depth)
    shares = mean_over(LENGTHS)
    logits, losses, theirs = alone(decoder, rows, weights, lambda name, n: shares(name, n) if name == "depth" else 0.0)
    assert_same(mine, logits)
    assert_same(found, theirs)
    if training:
        assert_same(depth["depth"].detach(), losses["depth"])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_plan_serves_all_layers_in_inference_mode_too(pattern: str) -> None:
    decoder, rows = build(FEED_FORWARDS["dense"], pattern), documents()
    input_ids, sequence_ids = packed(rows, AROUND)
    expected = decoder(input_ids, sequence_ids=sequence_ids).logits
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            before = _held.made
            assert_same(decoder(input_ids, sequence_ids=sequence_ids).logits, expected.detach())
            assert _held.made == before + 1


def everything_about(
    decoder: Decoder, input_ids: Tensor, told: dict[str, Tensor], real: Tensor, weights: Tensor
) -> dict[str, Any]:
    """Logits of the ``real`` tokens, losses, gradients, routing statistics and what balancers will learn."""
    everything = decoder(input_ids, **told).logits
    assert everything.isfinite().all()
    logits, losses = everything[real], auxiliary_losses(decoder)
    moes = [module for module in decoder.modules() if isinstance(module, MoE)]
    stats = [moe.stats.pack() for moe in moes]
    pending = [module.pending.clone() for module in decoder.modules() if isinstance(module, Balancer)]
    return {
        "logits": logits.detach(),
        "losses": {name: loss.detach() for name, loss in losses.items()},
        "gradients": gradients(decoder, logits, weights, losses),
        "stats": stats,
        "pending": pending,
    }


def forget(decoder: Decoder) -> None:
    """What balancers have seen."""
    for module in decoder.modules():
        if isinstance(module, Balancer):
            module.pending.zero_()


TOKENS = torch.zeros(2, 6, dtype=torch.long)
VALID = torch.ones(2, 6, dtype=torch.bool)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"valid": VALID[:1]}, r"^valid.shape=\(1, 6\): it must be input_ids', \(2, 6\)"),
        ({"valid": VALID[0]}, r"^valid.shape=\(6,\)"),
        ({"valid": VALID.long()}, r"^valid.dtype=torch.int64: it must be torch.bool"),
        ({"sequence_ids": TOKENS[:, :5]}, r"^sequence_ids.shape=\(2, 5\)"),
        ({"sequence_ids": TOKENS.int()}, r"^sequence_ids.dtype=torch.int32: it must be torch.int64"),
        ({"sequence_ids": TOKENS - 2}, r"^sequence_ids=-2: it must be 0 or more, or -1 for padding"),
        ({"sequence_ids": torch.tensor([[0, 1, 0, 2, 2, 2]] * 2)}, "^sequence_ids: stretches .*=2: it must be 1"),
        ({"valid": torch.tensor([[True, False, True, True, True, True]] * 2)}, "^valid: stretches .*=2: it must be 1"),
        ({"valid": VALID, "cache": KeyValueCache()}, "^valid=.*None with a cache"),
        ({"sequence_ids": TOKENS, "cache": KeyValueCache()}, "^sequence_ids=.*None with a cache"),
    ],
)
def test_what_cannot_be_meant_is_refused(told: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(FEED_FORWARDS["dense"])(TOKENS, **told)


def test_a_prompt_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^input_ids.shape=\(6,\): it must be \(batch, length\)"):
        build(FEED_FORWARDS["dense"])(TOKENS[0])


@pytest.mark.parametrize(
    "attention",
    [
        AttentionConfig(heads=2, pattern="MoBA(block=2, top_k=1)"),
        AttentionConfig(heads=2, pattern="NativeSparse(block=4, top_k=3, compress_block=4, stride=2, window=4)"),
        AttentionConfig(heads=2, pattern="Causal() & GlobalTokens(1)", global_projections=True),
    ],
    ids=["moba", "native sparse", "global projections"],
)
def test_attention_that_knows_no_documents_refuses_them(attention: AttentionConfig) -> None:
    decoder = Decoder(DecoderConfig(VOCAB, 16, (BlockConfig(attention, FEED_FORWARDS["dense"]),)))
    for name, table in (("valid", VALID), ("sequence_ids", TOKENS)):
        with pytest.raises(ValueError, match=rf"^{name}=\(2, 6\): it must be None with"):
            decoder(TOKENS, **{name: table})


def test_a_soft_router_takes_padding_and_no_packing() -> None:
    decoder = build(MoEConfig(12, 4, 2, router="SoftRouter(slots=2)", causal=False))
    assert isinstance(decoder.blocks[0].feed_forward.router, SoftRouter)
    rows = torch.randint(VOCAB, (3, 7))
    input_ids, valid = padded(list(rows), [1, 4, 0], 11)
    assert_same(decoder(input_ids, valid=valid).logits[valid], decoder(rows).logits.flatten(0, 1))
    with pytest.raises(ValueError, match="^sequence_ids=.*must be None"):
        decoder(TOKENS, sequence_ids=TOKENS)


def test_sequences_made_once_may_be_given_to_blocks_by_hand() -> None:
    decoder, rows = build(FEED_FORWARDS["moe"]), documents()
    input_ids, sequence_ids = packed(rows)
    x, told = decoder.embedding(input_ids), Sequences.of(input_ids, sequence_ids=sequence_ids)
    for block in decoder.blocks:
        x = block(x, sequences=told)
    logits = torch.nn.functional.linear(decoder.norm(x), decoder.embedding.weight)
    assert torch.equal(logits, decoder(input_ids, sequence_ids=sequence_ids).logits)
