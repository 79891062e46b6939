"""From a dense decoder to a Mixture of Experts with the same logits: a trained model's start as a sparse one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from toolkit.checks import require
from toolkit.layers import FeedForward, MoE
from toolkit.layers.upcycling import check_sizes, upcycle_feed_forward
from toolkit.models.config import BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.models.decoder import Decoder
from toolkit.models.mup import width_ratio
from toolkit.routing import TopKRouter


def upcycle(
    decoder: Decoder,
    num_experts: int,
    granularity: int = 1,
    top_k: int | None = None,
    *,
    shared_experts: int = 0,
    layers: Iterable[int] | None = None,
    noise: float = 0.0,
    seed: int = 0,
    **settings: Any,
) -> Decoder:
    """A new decoder whose chosen layers are MoEs, and whose logits are those of ``decoder``.

    Each dense layer is cut into ``granularity`` shards, which become experts, several times each;
    :mod:`toolkit.layers.upcycling` has the derivation. Everything else is copied: attention, norms, embedding, head,
    device, dtype, mode, and what is frozen. The random state is left as it was.

    Copies of one shard start equal and grow apart as the router, whose groups of experts start at random, sends them
    different tokens. Where it does not, as with ``top_k = num_experts``, only ``noise`` tells them apart. With
    ``top_k=1`` gates are not normalised and the router starts within a few roundings of zero: enough to spread the
    tokens over the experts, though unevenly, and the first steps decide what it learns: keep a balance loss.

    Args:
        decoder: dense in the chosen layers.
        num_experts: routed experts of a layer, a multiple of granularity - shared_experts.
        granularity: shards that a dense layer is cut into; an expert is 1 / granularity as wide.
        top_k: routed experts of a token, a multiple of granularity - shared_experts, which is the default: the dense
            model's FLOPs, but for the router's.
        shared_experts: shards that every token uses.
        layers: which become MoEs, numbered from 0; None for all.
        noise: standard deviation of what is added to the routed experts' matrices, as a share of their own; the
            logits are the dense ones only for 0.
        seed: of the router's rows and the noise.
        settings: further fields of :class:`MoEConfig`, such as ``balance``.

    Raises:
        ValueError: if a chosen layer is not there or is a MoE already, granularity does not divide its width,
            num_experts or top_k is no multiple of granularity - shared_experts, ``noise`` is negative, or the
            settings make a router that no scale of the weights is right for.

    Source: He et al. 2024, Upcycling LLMs into MoE (arXiv 2410.07524).

    >>> from toolkit.models import AttentionConfig
    >>> block = BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(hidden_dim=64))
    >>> dense = Decoder(DecoderConfig(vocab_size=256, dim=32, blocks=(block, block)))
    >>> sparse = upcycle(dense, num_experts=8, granularity=4)
    >>> ids = torch.arange(10)[None]
    >>> torch.allclose(sparse(ids).logits, dense(ids).logits, atol=1e-5)
    True
    """
    top_k = granularity - shared_experts if top_k is None else top_k
    check_sizes(granularity, num_experts, top_k, shared_experts)
    settings = {"num_experts": num_experts, "top_k": top_k, "shared_experts": shared_experts, **settings}
    blocks = list(decoder.config.blocks)
    chosen = _chosen_layers(layers, blocks)
    for layer in chosen:
        blocks[layer] = _sparse(blocks[layer], granularity, settings)
    sparse = _with_common_weights(decoder, replace(decoder.config, blocks=tuple(blocks)))
    generator = torch.Generator().manual_seed(seed)
    for layer in chosen:
        dense, moe = (model.blocks[layer].feed_forward for model in (decoder, sparse))
        assert isinstance(dense, FeedForward)
        assert isinstance(moe, MoE)
        upcycle_feed_forward(dense, moe, noise, generator)
        assert isinstance(moe.router, TopKRouter)  # upcycling refuses others
        moe.router.weight.data.mul_(width_ratio(sparse.config) ** 0.5)  # as muP starts it; 1 without
    return sparse


def _chosen_layers(layers: Iterable[int] | None, blocks: list[BlockConfig]) -> list[int]:
    """Sorted, each once, all of them dense."""
    chosen = sorted(set(range(len(blocks)) if layers is None else layers))
    require(len(chosen) > 0, "layers", chosen, "at least one layer, or None for all")
    for layer in chosen:
        require(0 <= layer < len(blocks), "layers", layer, f"0 to {len(blocks) - 1}")
        kind = type(blocks[layer].feed_forward)
        right = "of a dense layer: this is a MoE already; name the dense ones in layers"
        require(kind is FeedForwardConfig, f"decoder.config.blocks[{layer}].feed_forward", kind.__name__, right)
    return chosen


def _sparse(block: BlockConfig, granularity: int, settings: dict[str, Any]) -> BlockConfig:
    hidden_dim = block.feed_forward.hidden_dim
    require(hidden_dim % granularity == 0, "granularity", granularity, f"a divisor of hidden_dim={hidden_dim}")
    return replace(block, feed_forward=MoEConfig(hidden_dim // granularity, **settings))


def _with_common_weights(decoder: Decoder, config: DecoderConfig) -> Decoder:
    """A decoder of ``config`` with copies of all that ``decoder`` has too."""
    weight = decoder.embedding.weight
    with torch.random.fork_rng(devices=[]):
        sparse = Decoder(config).to(weight.device, weight.dtype)
    unmatched = sparse.load_state_dict(decoder.state_dict(), strict=False)
    names = [*unmatched.missing_keys, *unmatched.unexpected_keys]
    assert all(".feed_forward." in name for name in names), names
    ours = dict(sparse.named_parameters())
    for name, parameter in decoder.named_parameters():
        if name in ours:
            ours[name].requires_grad_(parameter.requires_grad)
    return sparse.train(decoder.training)
