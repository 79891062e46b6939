"""Bytes of buffers that processes send from and receive into, at most at once."""

from __future__ import annotations

from toolkit.compute.cost import shapes_of
from toolkit.compute.memory.activations import Tokens
from toolkit.compute.memory.spread import layer_numbers, process_numbers
from toolkit.layers import MoE
from toolkit.models import DecoderConfig
from toolkit.routing import SoftRouter

AHEAD = 2
"""Layers whose parameters FSDP2 has gathered at once: the one that runs and the next."""


def buffer_bytes(config: DecoderConfig, micro_batch: Tokens, process: int, in_flight: tuple[int, ...]) -> int:
    """Of one process of a pipeline, for parameters and their gradients, and for the tokens of one micro-batch.

    None of it is needed by one process. Those of parameters follow from FSDP2's and DDP's ways; those of tokens are
    what goes out and what comes in of the largest exchange.
    """
    return _parameter_buffers(config, micro_batch, process) + _token_buffers(config, micro_batch)


def _parameter_buffers(config: DecoderConfig, tokens: Tokens, process: int) -> int:
    """DDP's buckets, or what FSDP2 has gathered and the gradients of a layer before they are cut.

    FSDP2 does not give back what its root holds (embedding, last norm, head), nor layers with ``zero=2``.
    """
    spread, parallel = tokens.spread, tokens.spread.parallel
    total = process_numbers(config, spread, process)
    if spread.replicated:
        return 4 * total.kept
    if not spread.gathers:
        return 0
    numbers = layer_numbers(config, parallel)
    layers = [numbers[layer].gathered for layer in spread.layers(process)]
    root = total.gathered - sum(layers)
    held = sum(layers) if parallel.zero == 2 else min(sum(layers), AHEAD * max(layers))
    itemsize = 2 if spread.gathers_bf16 else 4
    return itemsize * (root + held) + 4 * max(root, *layers)


def _token_buffers(config: DecoderConfig, tokens: Tokens) -> int:
    """Tokens gathered and summed (tensor), keys and values (context), experts' rows (expert), a stage's (pipeline)."""
    parallel, low = tokens.spread.parallel, tokens.low
    found = 0
    if parallel.tensor > 1:
        found += low * tokens.count * 2 * config.dim
    if parallel.context > 1:
        found += 2 * low * tokens.count * _keys(config) // parallel.tensor
    if parallel.expert > 1:
        found += 2 * low * config.dim * max(_triples(config, tokens), default=0)
    if parallel.pipeline > 1:
        found += 2 * tokens.stream(config.dim)
    return found


def _keys(config: DecoderConfig) -> int:
    """Numbers of a token's keys and values, in the layer that has the most."""
    settings = [block.attention for block in config.blocks]
    return max(2 * each.key_heads * (each.head_dim or config.dim // each.heads) for each in settings)


def _triples(config: DecoderConfig, tokens: Tokens) -> list[int]:
    """Of every MoE, the pairs of a token and an expert."""
    layers = [part for part in shapes_of(config).modules() if isinstance(part, MoE)]
    chosen = [moe for moe in layers if not isinstance(moe.router, SoftRouter)]
    return [moe.triples(tokens.batch_size, tokens.seq_len) for moe in chosen]
