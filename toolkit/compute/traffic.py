"""Bytes that one process of a run that is spread over many sends in a training step, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

from torch import nn

from toolkit.attention import Pattern
from toolkit.attention.selection import NativeSparse
from toolkit.checks import require
from toolkit.compute.cost import shapes_of
from toolkit.compute.memory.activations import Tokens
from toolkit.compute.memory.per_device import spread_tokens
from toolkit.compute.memory.spread import Numbers, Spread, layer_numbers, process_numbers
from toolkit.layers import Block, MixtureOfDepths, MoE, SelfAttention
from toolkit.layers.experts import Experts
from toolkit.layers.recomputation import Recompute, layer_policies
from toolkit.models import Decoder, DecoderConfig
from toolkit.parallel import ParallelConfig
from toolkit.parallel.context import AttentionShape, Layout, ring_traffic, ulysses_traffic
from toolkit.parallel.expert import exchanged_bytes
from toolkit.parallel.pipeline.losses import count_losses
from toolkit.parallel.pipeline.traffic import stage_bytes
from toolkit.parallel.sharded import sharded_bytes
from toolkit.parallel.tensor.shares import shares
from toolkit.parallel.tensor.traffic import SharedLayers, shared_layers_bytes
from toolkit.parallel.traffic import SHARES
from toolkit.routing import LoadBalancingLoss

Part = TypeVar("Part", bound=nn.Module)


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process sends in a training step's forward and backward pass, by what they are sent for.

    Attributes:
        data: gradients averaged over copies: of the model, of its shards, of its experts.
        shard: parameters gathered, gradients scattered.
        tensor: tokens gathered and scattered around layers.
        context: keys and values, or heads' queries and outputs too, and their gradients.
        expert: tokens to their experts, and back.
        pipeline: tokens between stages, and what the stages tell each other.
        routing: counts of tokens that balance losses need.
    """

    data: float = 0.0
    shard: float = 0.0
    tensor: float = 0.0
    context: float = 0.0
    expert: float = 0.0
    pipeline: float = 0.0
    routing: float = 0.0

    @property
    def components(self) -> dict[str, float]:
        """By name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.components.values())

    @property
    def dominant(self) -> str:
        """The largest."""
        return max(self.components, key=self.components.__getitem__)


def traffic(
    config: DecoderConfig,
    batch_size: int,
    seq_len: int,
    precision: str = "32-true",
    parallel: ParallelConfig | None = None,
    recompute: Recompute = "none",
) -> Traffic:
    """Bytes that a process sends in a training step of ``config``: that of the process that sends most.

    The arguments are those of :func:`toolkit.compute.memory`. Sums of the formulas beside each kind of parallelism in
    :mod:`toolkit.parallel`; :class:`toolkit.parallel.SentBytes` counts the same in a run. Experts' loads are taken to
    be balanced. Of a context group it is the last process, which under a causal pattern sends most. What
    clips gradients and reports losses over data is not in it, some bytes.

    Raises:
        ValueError: as :func:`toolkit.compute.memory`; with ``tensor`` above 1 if a layer is a mixture of depths, with
            ``context`` above 1 if its pattern is ``NativeSparse``, whose bytes no formula says.
    """
    policies = layer_policies(recompute, len(config.blocks))
    tokens = spread_tokens(config, batch_size, seq_len, precision, parallel, policies)
    decoder, processes = shapes_of(config), range(len(tokens.spread.stages))
    sent = [_of_process(config, decoder, tokens, process, policies) for process in processes]
    return max(sent, key=lambda process: process.total)


def _of_process(config: DecoderConfig, decoder: Decoder, tokens: Tokens, process: int, policies: list[str]) -> Traffic:
    """One process of a pipeline; without a pipeline there is one."""
    spread = tokens.spread
    layers = [(decoder.blocks[layer], policies[layer] != "none") for layer in spread.layers(process)]
    copied, sharded = _parameters(config, spread, process)
    return Traffic(
        data=copied + _copied_experts(config, spread, process),
        shard=sharded,
        tensor=_tensor(config, decoder, tokens, layers),
        context=sum(_attention(part, tokens, again) for part, again in _parts(layers, SelfAttention)),
        expert=sum(_exchange(part, tokens, again) for part, again in _parts(layers, MoE)),
        pipeline=_pipeline(config, decoder, tokens, process),
        routing=_counts(layers, tokens),
    )


def _parts(layers: list[tuple[nn.Module, bool]], kind: type[Part]) -> list[tuple[Part, bool]]:
    """The modules of one kind, and whether each is computed again."""
    return [(part, again) for layer, again in layers for part in layer.modules() if isinstance(part, kind)]


def _parameters(config: DecoderConfig, spread: Spread, process: int) -> tuple[float, float]:
    """(over copies, within one) of gradients and parameters, experts that are shared left out."""
    parallel = spread.parallel
    total = process_numbers(config, spread, process)
    if spread.replicated:
        return SHARES["all_reduce"](parallel.data_size) * 4 * total.kept, 0.0
    if not spread.gathers:
        return 0.0, 0.0
    layers = sum((layer_numbers(config, parallel)[layer] for layer in spread.layers(process)), Numbers())
    sent = sharded_bytes(
        layers.cut,
        total.cut - layers.cut,
        processes=spread.cut,
        copies=parallel.data_size,
        zero=parallel.zero,
        gather_itemsize=2 if spread.gathers_bf16 else 4,
    )
    copied = sent.pop("all_reduce")
    return copied, sum(sent.values())


def _copied_experts(config: DecoderConfig, spread: Spread, process: int) -> float:
    """Gradients of experts, summed over the groups that have the same ones."""
    if spread.expert == 1:
        return 0.0
    total, sizes = process_numbers(config, spread, process), spread.parallel
    copies = sizes.data_size * sizes.shard * sizes.context // spread.expert
    return SHARES["all_reduce"](copies) * 4 * (total.kept - total.cut)


def _tensor(config: DecoderConfig, decoder: Decoder, tokens: Tokens, layers: list[tuple[nn.Module, bool]]) -> float:
    sizes = tokens.spread.parallel
    if sizes.tensor == 1:
        return 0.0
    for layer, _ in layers:
        right = "no mixture of depths with tensor above 1: the bytes it sends are not counted"
        require(not isinstance(layer, MixtureOfDepths), "config", "one with MixtureOfDepths", right)
    shape = SharedLayers(
        ranks=sizes.tensor,
        tokens=tokens.count,
        dim=config.dim,
        low=tokens.low,
        high=tokens.high,
        layers=len(layers),
        again=sum(again for _, again in layers),
        whole=_whole_bytes(decoder, tokens),
        sequence_parallel=sizes.sequence_parallel,
    )
    return sum(shared_layers_bytes(shape).values())


def _whole_bytes(decoder: Decoder, tokens: Tokens) -> int:
    """Of gradients that every process of a tensor group computes a part of, in what FSDP2 gathered the parameters in.

    Experts that are shared are not gathered.
    """
    sizes = tokens.spread.parallel
    norms = [decoder.norm] if sizes.sequence_parallel else []
    inside: list[nn.Module] = []
    for block in decoder.blocks:
        assert isinstance(block, Block), "others are refused"
        inside += [*block.attention.modules(), *block.feed_forward.modules()]
        norms += [block.attention_norm, block.feed_forward_norm] if sizes.sequence_parallel else []
    found = sum(tokens.high * weight.numel() for norm in norms for weight in norm.parameters())
    for part in inside:
        shared = isinstance(part, Experts) and sizes.expert > 1
        whole = (part.get_parameter(name) for name, share in shares(part, sizes.tensor).items() if share.dim is None)
        numbers = sum(weight.numel() for weight in whole)
        found += 4 * numbers // sizes.expert if shared else tokens.high * numbers
    return found


def _attention(attention: SelfAttention, tokens: Tokens, again: bool) -> float:
    """Of one attention layer, in the zigzag layout, as the decoder is made parallel."""
    sizes, pattern = tokens.spread.parallel, attention.pattern
    if sizes.context == 1:
        return 0.0
    counted = not isinstance(pattern, NativeSparse)
    require(counted, "pattern", pattern, "no NativeSparse with context above 1: the bytes it sends are not counted")
    layout = Layout("zigzag", sizes.context, tokens.seq_len * sizes.context)
    heads, kv_heads, width = attention.heads // sizes.tensor, attention.key_heads // sizes.tensor, attention.head_dim
    shape = AttentionShape(tokens.batch_size, heads, kv_heads, width, width, tokens.low)
    if sizes.context_method == "ring":
        assert isinstance(pattern, Pattern), "others are refused"
        found = ring_traffic(pattern, layout, sizes.context - 1, shape)
    else:
        found = ulysses_traffic(layout, shape)
    return (1 + again) * found.forward + found.backward


def _exchange(moe: MoE, tokens: Tokens, again: bool) -> float:
    """Of one MoE whose loads are balanced."""
    ranks = tokens.spread.expert
    if ranks == 1:
        return 0.0
    routed = moe.triples(tokens.batch_size, tokens.seq_len) * moe.num_experts // moe.choices
    crossing = routed * (ranks - 1) // ranks
    dim = moe.experts.weights.first.shape[-1]
    sizes = {"dim": dim, "itemsize": tokens.low, "gate_itemsize": 4, "num_experts": moe.num_experts, "ranks": ranks}
    forward, both = (exchanged_bytes(crossing, crossing, **sizes, backward=way).total for way in (False, True))
    return float(both + again * forward)


def _pipeline(config: DecoderConfig, decoder: Decoder, tokens: Tokens, process: int) -> float:
    """Tokens; a tied head's gradient, of which the first and the last process have copies; the losses' sums."""
    processes, per_process = len(tokens.spread.stages), tokens.spread.parallel.stages_per_process
    if processes == 1:
        return 0.0
    tied = config.tied_head and process in (0, processes - 1)
    embedding = SHARES["all_reduce"](2) * 4 * config.vocab_size * config.dim if tied else 0
    losses = SHARES["all_reduce"](processes) * 8 * (1 + len(count_losses(decoder)))
    stages = processes * per_process
    own = range(process, stages, processes)
    return sum(stage_bytes(tokens.count, config.dim, stage, stages) for stage in own) + embedding + losses


def _counts(layers: list[tuple[nn.Module, bool]], tokens: Tokens) -> float:
    """Balance losses over the global batch sum int64 counts of every expert, in each micro-batch."""
    sizes = tokens.spread.parallel
    counted = [
        moe.choices
        for moe, _ in _parts(layers, MoE)
        for loss in getattr(moe.router, "losses", ())
        if isinstance(loss, LoadBalancingLoss) and loss.over == "global"
    ]
    processes = sizes.data_size * sizes.shard * sizes.context
    return SHARES["all_reduce"](processes) * 8 * sum(counted) * sizes.micro_batch_count
