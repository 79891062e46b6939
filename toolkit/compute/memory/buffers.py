"""Bytes of buffers that processes send from and receive into, at most at once.

Measured over gloo, where a buffer counts for as long as it is there
(:class:`toolkit.training.buffer_bytes.BufferBytes`): to the byte for each kind of parallelism by itself. Where two
kinds are there at once the sum is a bound: they need not hold their most at the same time; so it is for the stages
between a pipeline's ends. On a GPU memory that another stream still uses is given back later, and NCCL has buffers of
its own: neither is in it, and neither is measured.
"""

from __future__ import annotations

from toolkit.attention import Pattern
from toolkit.compute.cost import shapes_of
from toolkit.compute.memory.activations import Tokens
from toolkit.compute.memory.spread import layer_numbers, process_numbers
from toolkit.layers import MoE, SelfAttention
from toolkit.models import DecoderConfig
from toolkit.parallel.context import AttentionShape, Layout
from toolkit.parallel.context.traffic import ring_buffers
from toolkit.parallel.pipeline.traffic import stage_buffers
from toolkit.routing import SoftRouter


def buffer_bytes(config: DecoderConfig, micro_batch: Tokens, process: int, in_flight: tuple[int, ...]) -> int:
    """Of one process of a pipeline, for parameters and their gradients, and for tokens; none is needed by one process.

    Args:
        config: the decoder.
        micro_batch: the tokens of one.
        process: its place in the pipeline.
        in_flight: micro-batches that each of its stages keeps at most.
    """
    spread = micro_batch.spread
    tokens = _token_buffers(config, micro_batch) + _stage_buffers(config, micro_batch, process, in_flight)
    if spread.replicated:
        return 4 * process_numbers(config, spread, process).kept + tokens  # DDP's buckets
    if not spread.gathers:
        return tokens
    computing, packing = _sharded_buffers(config, micro_batch, process)
    return max(computing + tokens, packing)


def _sharded_buffers(config: DecoderConfig, tokens: Tokens, process: int) -> tuple[int, int]:
    """FSDP2's, while a layer's backward pass computes, and when its gradients are packed to be sent.

    While it computes, its parameters and the next one's are gathered, the gradients of the one before are on their way
    in fp32; parameters that are cast to be gathered are there as the part of them that is sent too. When gradients are
    packed they are there twice. What the root holds (embedding, last norm, head) stays gathered, and so do all layers
    with ``zero=2``. Parameters that one process has whole are used as they are.
    """
    spread, parallel = tokens.spread, tokens.spread.parallel
    numbers = layer_numbers(config, parallel)
    layers = [numbers[layer].gathered for layer in spread.layers(process)]
    root, largest = process_numbers(config, spread, process).gathered - sum(layers), max(layers)
    copied = spread.cut > 1 or spread.gathers_bf16
    itemsize = 2 if spread.gathers_bf16 else 4

    def gathered(count: int) -> int:
        held = sum(layers) if parallel.zero == 2 else min(sum(layers), count * largest)
        return copied * itemsize * (root + held)

    sent = itemsize * -(-largest // spread.cut) if spread.gathers_bf16 else 0
    computing = gathered(2) + sent + 4 * largest
    of_layer, of_root = gathered(1) + (itemsize + 4) * largest, gathered(0) + (itemsize + 4) * root
    return computing, max(of_layer, of_root)


def _token_buffers(config: DecoderConfig, tokens: Tokens) -> int:
    """Tokens gathered and summed (tensor), keys and values (context), experts' rows and gates, out and in (expert)."""
    parallel, found = tokens.spread.parallel, 0
    if parallel.tensor > 1:
        first = tokens.low if parallel.sequence_parallel else tokens.high
        found += (first + tokens.high) * tokens.count * config.dim
    if parallel.context > 1:
        ring = parallel.context_method == "ring"
        found += _ring_buffers(config, tokens) if ring else _head_buffers(config, tokens)
    if parallel.expert > 1:
        found += 2 * (tokens.low * config.dim + 4) * max(_triples(config, tokens), default=0)
    return found


def _ring_buffers(config: DecoderConfig, tokens: Tokens) -> int:
    """Of the layer that has the most, on the first or the last process of a ring."""
    sizes, found = tokens.spread.parallel, 0
    layout = Layout("zigzag", sizes.context, tokens.seq_len * sizes.context)
    different = {block.attention: layer for block, layer in zip(config.blocks, shapes_of(config).blocks, strict=True)}
    for layer in different.values():
        (attention,) = (part for part in layer.modules() if isinstance(part, SelfAttention))
        assert isinstance(attention.pattern, Pattern), "others are refused"
        heads, kv_heads = attention.heads // sizes.tensor, attention.key_heads // sizes.tensor
        shape = AttentionShape(tokens.batch_size, heads, kv_heads, attention.head_dim, attention.head_dim, tokens.low)
        ends = (ring_buffers(attention.pattern, layout, rank, shape) for rank in (0, sizes.context - 1))
        found = max(found, *ends)
    return found


def _head_buffers(config: DecoderConfig, tokens: Tokens) -> int:
    """Queries, or outputs, that go out and come in where heads are shared out; of the layer that has the most."""
    settings = [block.attention for block in config.blocks]
    numbers = max(each.heads * (each.head_dim or config.dim // each.heads) for each in settings)
    return 2 * tokens.low * tokens.count * numbers // tokens.spread.parallel.tensor


def _stage_buffers(config: DecoderConfig, tokens: Tokens, process: int, in_flight: tuple[int, ...]) -> int:
    """Of all stages of the process."""
    parallel = tokens.spread.parallel
    if parallel.pipeline == 1:
        return 0
    stages = parallel.pipeline * parallel.stages_per_process
    counts = (
        stage_buffers(stage, stages, parallel.micro_batch_count, kept, at_once=parallel.schedule != "1f1b")
        for stage, kept in zip(range(process, stages, parallel.pipeline), in_flight, strict=True)
    )
    return tokens.stream(config.dim) * sum(counts)


def _triples(config: DecoderConfig, tokens: Tokens) -> list[int]:
    """Of every MoE, the pairs of a token and an expert."""
    layers = [part for part in shapes_of(config).modules() if isinstance(part, MoE)]
    chosen = [moe for moe in layers if not isinstance(moe.router, SoftRouter)]
    return [moe.triples(tokens.batch_size, tokens.seq_len) for moe in chosen]
