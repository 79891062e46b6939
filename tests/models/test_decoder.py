"""The decoder over a cache, and in what it can see; test_hugging_face.py compares it with others'."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolkit.attention import KeyValueCache, attention
from toolkit.layers import SelfAttention, auxiliary_losses
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig

VOCAB, DIM, HIDDEN, LAYERS = 37, 32, 48, 2


def config(
    pattern: str = "Causal()",
    feed_forward: FeedForwardConfig | MoEConfig | None = None,
    heads: int = 4,
    kv_heads: int = 2,
    layers: int = LAYERS,
    tied_head: bool = True,
    rope_base: float | None = 10_000.0,
) -> DecoderConfig:
    attention = AttentionConfig(heads=heads, kv_heads=kv_heads, pattern=pattern, rope_base=rope_base)
    block = BlockConfig(attention, feed_forward or FeedForwardConfig(HIDDEN))
    return DecoderConfig(VOCAB, DIM, (block,) * layers, tied_head)


MOE = MoEConfig(hidden_dim=HIDDEN, num_experts=4, top_k=2)
WINDOW = "Causal() & SlidingWindow(3)"


@pytest.mark.parametrize("feed_forward", [FeedForwardConfig(HIDDEN), MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("pattern", ["Causal()", WINDOW])
@pytest.mark.parametrize("chunks", [[1] * 11, [7, 1, 3], [2, 9]])
def test_decoding_over_a_cache_is_the_full_forward(
    feed_forward: FeedForwardConfig | MoEConfig, pattern: str, chunks: list[int]
) -> None:
    decoder = Decoder(config(pattern, feed_forward)).double().eval()
    ids, cache = torch.randint(VOCAB, (2, 11)), KeyValueCache()
    parts = [decoder(part, cache).logits for part in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), decoder(ids).logits, rtol=0, atol=1e-12)
    assert [cache.length(layer) for layer in range(LAYERS)] == [11] * LAYERS


@pytest.mark.parametrize("feed_forward", [FeedForwardConfig(HIDDEN), MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("pattern", ["Causal()", WINDOW])
def test_greedy_generation_is_recomputation_step_by_step(
    feed_forward: FeedForwardConfig | MoEConfig, pattern: str
) -> None:
    decoder = Decoder(config(pattern, feed_forward)).double().eval()
    prompt = torch.randint(VOCAB, (3, 4))
    generated = decoder.generate(prompt, 9, temperature=0)
    expected = prompt
    for _ in range(9):
        expected = torch.cat([expected, decoder(expected).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generated, expected)
    assert not generated.requires_grad


def test_sampling_follows_the_softmax_at_the_temperature() -> None:
    decoder = Decoder(config(layers=1)).eval()
    prompt = torch.randint(VOCAB, (1, 4)).expand(4_000, 4)
    generator = torch.Generator().manual_seed(0)
    sampled = decoder.generate(prompt, 1, temperature=0.5, generator=generator)[:, -1]
    share = torch.bincount(sampled, minlength=VOCAB) / 4_000
    expected = torch.softmax(decoder(prompt[:1]).logits[0, -1] / 0.5, dim=-1).detach()
    # Each share within five standard errors of its probability.
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / 4_000).sqrt() + 1e-3).all()


@pytest.mark.parametrize("top_k", [1, 3, VOCAB])
def test_only_the_top_k_tokens_are_sampled(top_k: int) -> None:
    decoder = Decoder(config()).eval()
    prompt = torch.randint(VOCAB, (1, 4)).expand(500, 4)
    sampled = decoder.generate(prompt, 1, temperature=2.0, top_k=top_k)[:, -1]
    allowed = decoder(prompt[:1]).logits[0, -1].topk(top_k).indices
    assert set(sampled.tolist()) <= set(allowed.tolist())
    if top_k <= 3:
        assert set(sampled.tolist()) == set(allowed.tolist())


def test_a_generators_seed_decides_what_is_sampled() -> None:
    decoder = Decoder(config()).eval()
    prompt = torch.randint(VOCAB, (2, 4))
    runs = [decoder.generate(prompt, 20, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(runs[2][:, :4], prompt)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, r"input_ids\.shape=\(1, 0\)"),
        ({"input_ids": torch.zeros(3, dtype=torch.long)}, r"input_ids\.shape=\(3,\)"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": VOCAB + 1}, "vocab_size"),
    ],
)
def test_bad_settings_of_generation_are_named(settings: dict[str, Any], named: str) -> None:
    arguments = {"input_ids": torch.zeros(1, 3, dtype=torch.long), "max_new_tokens": 2, **settings}
    with pytest.raises(ValueError, match=named):
        Decoder(config(layers=1)).generate(**arguments)


def input_gradients(decoder: Decoder, ids: Tensor, position: int) -> Tensor:
    """Which input positions (length,) the logits at ``position`` depend on, by their gradient."""
    seen: list[Tensor] = []
    hook = decoder.embedding.register_forward_hook(lambda module, inputs, out: seen.append(out))
    logits = decoder(ids).logits
    hook.remove()
    (gradient,) = torch.autograd.grad((logits[0, position] * torch.randn(VOCAB).double()).sum(), seen[0])
    return (gradient[0] != 0).any(dim=-1)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("pattern", "reach"), [("Causal()", 200), (WINDOW, LAYERS * 2)])
def test_a_sparse_decoders_logits_depend_on_no_later_token_and_on_all_within_reach(
    mode: str, pattern: str, reach: int
) -> None:
    decoder = getattr(Decoder(config(pattern, MOE)).double(), mode)()
    ids = torch.randint(VOCAB, (1, 140))
    at = torch.arange(140)
    for position in (0, 5, 127, 128, 139):
        expected = (at <= position) & (at >= position - reach)
        assert torch.equal(input_gradients(decoder, ids, position), expected)


def test_the_rows_of_a_batch_do_not_see_one_another() -> None:
    decoder = Decoder(config(feed_forward=MOE)).double().eval()
    ids = torch.randint(VOCAB, (3, 11))
    torch.testing.assert_close(decoder(ids[1:2]).logits, decoder(ids).logits[1:2], rtol=0, atol=1e-12)


def test_layers_may_differ() -> None:
    attention = AttentionConfig(heads=2, pattern=WINDOW)
    blocks = (
        BlockConfig(AttentionConfig(heads=4, rope_base=None), FeedForwardConfig(20)),
        BlockConfig(attention, MOE),
        BlockConfig(attention, MoEConfig(8, 6, 1, shared_experts=1)),
    )
    decoder = Decoder(DecoderConfig(VOCAB, DIM, blocks)).double()
    ids, cache = torch.randint(VOCAB, (2, 9)), KeyValueCache()
    whole = decoder(ids).logits
    assert set(auxiliary_losses(decoder)) == {"balance", "z"}
    parts = [decoder(part, cache).logits for part in ids.split(4, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tied_head", [True, False])
def test_every_parameter_gets_a_gradient(tied_head: bool) -> None:
    decoder = Decoder(config(feed_forward=MOE, tied_head=tied_head))
    logits = decoder(torch.randint(VOCAB, (4, 30))).logits
    (logits.square().mean() + sum(auxiliary_losses(decoder).values())).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_it_learns_a_repeated_sequence() -> None:
    decoder = Decoder(config(feed_forward=MOE))
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    ids = torch.randint(VOCAB, (4, 17))
    for _ in range(60):
        loss = nn.functional.cross_entropy(decoder(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + sum(auxiliary_losses(decoder).values())).backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1  # from ln(37) = 3.6
    prompt = ids[:, :6]
    assert (decoder.eval().generate(prompt, 11, temperature=0) == ids).float().mean() > 0.95


def test_a_trained_decoder_can_be_copied_pickled_and_loaded() -> None:
    decoder = Decoder(config(feed_forward=MOE))
    ids = torch.randint(VOCAB, (2, 9))
    decoder(ids).logits.sum().backward()
    loaded = Decoder(config(feed_forward=MOE))
    loaded.load_state_dict(decoder.state_dict())
    expected = decoder(ids).logits
    for twin in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder)), loaded):
        assert torch.equal(twin(ids).logits, expected)


def test_work_is_that_of_its_layers_and_its_head() -> None:
    decoder = Decoder(config(WINDOW, MOE))
    work = decoder.work(10)
    layer = [part for part in work if part.kind != "head"]
    assert layer[: len(layer) // LAYERS] * LAYERS == layer
    (head,) = [part for part in work if part.kind == "head"]
    assert head.needed == head.computed == 10 * DIM * VOCAB
    per_layer = {part.kind: part.needed for part in layer}
    visible = 1 + 2 + 3 * 8  # a causal window of three over ten tokens
    assert per_layer == {
        "attention": 10 * (DIM * 8 * 8 + 4 * 8 * DIM),
        "scores": visible * 4 * (8 + 8),
        "router": 10 * DIM * 4,
        "experts": 10 * 2 * 3 * DIM * HIDDEN,
    }


def test_dense_work_is_what_torchs_flop_counter_sees() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    # The textbook's products, which torch counts by formulas of its own; no pair is masked.
    decoder = Decoder(config("Full()"))
    for module in decoder.modules():
        if isinstance(module, SelfAttention):
            module.attend = partial(attention, backend="reference")
    ids = torch.randint(VOCAB, (2, 9))
    with FlopCounterMode(display=False) as counter:
        decoder(ids)
    assert counter.get_total_flops() == 2 * 2 * sum(part.needed for part in decoder.work(9))
