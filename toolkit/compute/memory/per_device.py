"""What training or serving a decoder keeps in memory, on one device of those that share it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from toolkit.checks import require, require_choice, require_positive
from toolkit.compute.cost import shapes_of
from toolkit.compute.memory.activations import Tokens, kept_bytes, output_bytes, rerun_bytes
from toolkit.compute.memory.buffers import buffer_bytes
from toolkit.compute.memory.in_flight import most_in_flight
from toolkit.compute.memory.spread import Numbers, Spread, layer_numbers, process_numbers
from toolkit.compute.memory.supported import require_trainable
from toolkit.layers.recomputation import Recompute, layer_policies
from toolkit.models import BlockConfig, DecoderConfig
from toolkit.parallel import ParallelConfig

PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        parameters: weights; with ``bf16-mixed`` also the bf16 copies autocast keeps for backward.
        gradients: one fp32 number a parameter.
        optimizer: AdamW's two moments.
        activations: what the backward pass reads of one batch; of a MoE, what its router and its triples take.
        kv_cache: keys and values of one batch of ``seq_len`` tokens when decoding; not in ``training``.
        recomputed: what the layer that keeps the most computes again, while its backward pass runs.
        communication: buffers: gathered parameters, gradients on their way, tokens of other processes.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    kv_cache: int
    recomputed: int = 0
    communication: int = 0

    @property
    def training(self) -> int:
        """All that training one batch keeps at its peak."""
        return sum(self.components.values())

    @property
    def components(self) -> dict[str, int]:
        """What ``training`` is the sum of, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "kv_cache"}

    @property
    def dominant(self) -> str:
        """The largest of the components."""
        return max(self.components, key=self.components.__getitem__)


def memory(
    config: DecoderConfig,
    batch_size: int,
    seq_len: int,
    precision: str = "32-true",
    parallel: ParallelConfig | None = None,
    recompute: Recompute = "none",
) -> Memory:
    """Bytes that training (AdamW) and decoding ``config`` keep, on the device that keeps the most.

    Args:
        config: the decoder.
        batch_size: sequences that a device takes in a step, as one of data * shard readers. With ``pipeline`` they pass
            in ``micro_batches`` parts, of which a stage keeps as many as ``schedule`` has in flight there: 1F1B all of
            as many as stages in the first and one in the last, GPipe all in every one.
        seq_len: tokens in each; a device has 1 / context of them.
        precision: ``"32-true"``, or ``"bf16-mixed"``: fp32 weights, products in bf16 under autocast.
        parallel: processes and what each of them holds; None for one.
        recompute: what layers compute again, see :func:`toolkit.layers.recomputation.recompute_layers`.

    Routed experts are taken to be balanced over the processes that share them. ``context`` is a ring; by heads
    (Ulysses) a process keeps as many activations, and those of key heads that go to several processes once in each.
    What is there for the time of one operator, what an allocator wastes and what a library keeps for itself is not in
    it. Held to what is measured on CPUs: parameters, gradients, moments and buffers of one kind of parallelism to the
    byte, activations to 15%, see ``experiments/benchmarks/parallel_memory.py``; buffers of several kinds at once are a
    bound, their sum.

    Raises:
        ValueError: if a size is not positive, the precision or policy unknown, or the decoder is not trained so:
            see :func:`toolkit.compute.memory.supported.require_trainable`.

    Source: activations: the counting of Korthikanti et al. 2022 (arXiv 2205.05198), section 4, for these layers;
    states over processes: Rajbhandari et al. 2020 (arXiv 1910.02054), section 5; stages: Narayanan et al. 2021
    (arXiv 2104.04473), section 2.2.
    """
    policies = layer_policies(recompute, len(config.blocks))
    tokens = spread_tokens(config, batch_size, seq_len, precision, parallel, policies)
    processes = range(len(tokens.spread.stages))
    return max((_of_process(config, tokens, process, policies) for process in processes), key=_in_all)


def spread_tokens(
    config: DecoderConfig,
    batch_size: int,
    seq_len: int,
    precision: str,
    parallel: ParallelConfig | None,
    policies: list[str],
) -> Tokens:
    """A batch as each process has it; the arguments, and what is refused, are those of :func:`memory`."""
    require_positive(batch_size=batch_size, seq_len=seq_len)
    require_choice("precision", precision, PRECISIONS)
    parallel = ParallelConfig() if parallel is None else parallel
    require_trainable(config, parallel, seq_len, policies)
    right = f"a multiple of micro_batches={parallel.micro_batch_count}"
    require(batch_size % parallel.micro_batch_count == 0, "batch_size", batch_size, right)
    spread = Spread.of(config, parallel, seq_len)
    low = 2 if precision == "bf16-mixed" or spread.gathers_bf16 else 4
    return Tokens(batch_size, seq_len // parallel.context, low, spread, high=2 if spread.gathers_bf16 else 4)


def _in_all(process: Memory) -> int:
    return process.training


def _of_process(config: DecoderConfig, tokens: Tokens, process: int, policies: list[str]) -> Memory:
    """One process of a pipeline; without a pipeline there is one."""
    spread, parallel = tokens.spread, tokens.spread.parallel
    mine, here = spread.layers(process), _on_device(process_numbers(config, spread, process), parallel)
    micro_batch, built = tokens.share(1, parallel.micro_batch_count), shapes_of(config).blocks
    layers = {layer: (config.blocks[layer], built[layer], config.dim, micro_batch, policies[layer]) for layer in mine}
    sizes = [sum(kept_bytes(*layers[layer]) for layer in stage) for stage in spread.stages[process]]
    if process == len(spread.stages) - 1:
        sizes[-1] += output_bytes(config, micro_batch)
    in_flight = most_in_flight(parallel, process, sizes)
    return Memory(
        parameters=4 * here + 2 * _copies(config, tokens, process, policies),
        gradients=4 * here,
        optimizer=8 * here,
        activations=sum(size * count for size, count in zip(sizes, in_flight, strict=True)),
        kv_cache=round(sum(_cache_bytes(config.blocks[layer], config.dim, tokens) for layer in mine)),
        recomputed=max(rerun_bytes(*settings) for settings in layers.values()),
        communication=buffer_bytes(config, micro_batch, process, in_flight),
    )


def _on_device(numbers: Numbers, parallel: ParallelConfig) -> int:
    """Numbers kept between steps on the device: offloaded ones are on the host, but for shared experts."""
    return numbers.computed - numbers.gathered if parallel.offload else numbers.kept


def _copies(config: DecoderConfig, tokens: Tokens, process: int, policies: list[str]) -> int:
    """Numbers in bf16 that autocast's casts keep for the backward pass, of layers that are not computed again.

    Weights that FSDP2 gathers in bf16 are not cast.
    """
    spread, parallel = tokens.spread, tokens.spread.parallel
    if tokens.low == 4:
        return 0
    layers = layer_numbers(config, parallel)
    again = sum((layers[layer] for layer in spread.layers(process) if policies[layer] != "none"), Numbers())
    total = process_numbers(config, spread, process)
    return total.computed - again.computed - (total.gathered - again.gathered if spread.gathers_bf16 else 0)


def _cache_bytes(block: BlockConfig, dim: int, tokens: Tokens) -> float:
    """Keys and values of one layer that the whole batch keeps while decoding."""
    attention = block.attention
    width = 2 * attention.key_heads * (attention.head_dim or dim // attention.heads) // tokens.spread.tensor
    share = 1.0 if block.depth_capacity is None else block.depth_capacity
    return tokens.count * tokens.low * share * width
