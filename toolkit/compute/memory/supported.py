"""Layouts that the toolkit does not train in, refused as it would refuse them, before a process runs."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.checks import require
from toolkit.compute.cost import shapes_of
from toolkit.compute.memory.spread import layer_numbers, outer_numbers
from toolkit.layers import MoE, SelfAttention
from toolkit.models import DecoderConfig
from toolkit.parallel import ParallelConfig
from toolkit.parallel.context.heads import require_heads
from toolkit.parallel.context.supported import require_parallel_model
from toolkit.parallel.pipeline import require_alone
from toolkit.parallel.pipeline.losses import require_no_global_counts
from toolkit.routing import SoftRouter


def require_trainable(
    config: DecoderConfig, parallel: ParallelConfig, seq_len: int, policies: Sequence[str] | None = None
) -> None:
    """Refuse a decoder that ``parallelize`` or ``PipelineTrainer`` would refuse on sequences of ``seq_len`` tokens.

    Args:
        config: the decoder.
        parallel: the processes.
        seq_len: tokens of a whole sequence.
        policies: of each layer, what it computes again; None: nothing.

    Raises:
        ValueError: naming the setting and what would be right.
    """
    layer_numbers(config, parallel)  # refuses what cannot be shared evenly
    outer_numbers(config, parallel)
    if parallel.context > 1:
        _require_parts(config, parallel)
    _require_even_tokens(parallel, seq_len)
    if parallel.expert > 1:
        _require_choosing_experts(config)
    if parallel.pipeline > 1:
        _require_stages(config, parallel, policies or ["none"] * len(config.blocks))


def _require_parts(config: DecoderConfig, parallel: ParallelConfig) -> None:
    """What attends to parts of sequences as to the whole."""
    decoder = shapes_of(config)
    require_parallel_model(decoder, parallel.context, parallel.context_method)
    for layer in decoder.modules():
        if isinstance(layer, SelfAttention) and parallel.context_method == "ulysses":
            require_heads(layer.heads // parallel.tensor, layer.kv_heads // parallel.tensor, parallel.context)


def _require_even_tokens(parallel: ParallelConfig, seq_len: int) -> None:
    """Each process of a ring has two chunks; a shared stream is cut along what a process has."""
    stream = parallel.tensor if parallel.sequence_parallel else 1
    right = f"a multiple of context * tensor = {parallel.context * stream}"
    require(seq_len % (parallel.context * stream) == 0, "seq_len", seq_len, right)
    chunks = 2 * parallel.context if parallel.context > 1 else 1
    require(seq_len % chunks == 0, "seq_len", seq_len, f"a multiple of 2 * context = {chunks}, the chunks of a ring")


def _require_choosing_experts(config: DecoderConfig) -> None:
    layers = [part for part in shapes_of(config).modules() if isinstance(part, MoE)]
    require(bool(layers), "expert", "above 1", "1 for a decoder without a MoE")
    for moe in layers:
        right = "one that chooses experts, with expert above 1: a SoftRouter's slots are mixed in every process"
        require(not isinstance(moe.router, SoftRouter), "router", type(moe.router).__name__, right)


def _require_stages(config: DecoderConfig, parallel: ParallelConfig, policies: Sequence[str]) -> None:
    require_alone(parallel)
    stages, layers = parallel.pipeline * parallel.stages_per_process, len(config.blocks)
    name = "pipeline" if parallel.stages_per_process == 1 else "pipeline * stages_per_process"
    require(stages <= layers, name, stages, f"at most {layers}, the layers")
    again = [block for block, policy in zip(shapes_of(config).blocks, policies, strict=True) if policy != "none"]
    require_no_global_counts(again, parallel.micro_batch_count)
