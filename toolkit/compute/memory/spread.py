"""What one process of a :class:`toolkit.parallel.ParallelConfig` has of tokens, layers and parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from torch import nn

from toolkit.checks import require
from toolkit.compute.cost import shapes_of
from toolkit.layers.experts import Experts
from toolkit.models import DecoderConfig
from toolkit.parallel import ParallelConfig
from toolkit.parallel.pipeline import layer_costs, split_layers
from toolkit.parallel.tensor.shares import shares


@dataclass(frozen=True)
class Spread:
    """The sizes that memory depends on.

    Attributes:
        parallel: all of them.
        stages: the layers of the pipeline's stages, by process: several of each where stages are interleaved.
    """

    parallel: ParallelConfig
    stages: tuple[tuple[range, ...], ...]

    @classmethod
    def of(cls, config: DecoderConfig, parallel: ParallelConfig, seq_len: int) -> Spread:
        """With the stages that a pipeline makes of ``config`` on sequences of ``seq_len`` tokens."""
        return cls(parallel, stage_layers(config, parallel.pipeline, parallel.stages_per_process, seq_len))

    def layers(self, process: int) -> list[int]:
        """Of all stages of one process of a pipeline."""
        return [layer for stage in self.stages[process] for layer in stage]

    @property
    def tensor(self) -> int:
        """Processes that share heads, hidden units and vocabulary."""
        return self.parallel.tensor

    @property
    def stream(self) -> int:
        """Processes that share the residual stream of the tokens they compute together."""
        return self.tensor if self.parallel.sequence_parallel else 1

    @property
    def expert(self) -> int:
        """Processes that share routed experts."""
        return self.parallel.expert

    @property
    def cut(self) -> int:
        """Processes over which FSDP2 cuts parameters: ``context`` is folded into ``shard``."""
        return self.parallel.shard * self.parallel.context

    @property
    def replicated(self) -> bool:
        """Whether DDP averages the gradients of whole models, or of whole stages."""
        sizes = self.parallel
        return sizes.data_size > 1 == sizes.shard == sizes.tensor == sizes.context == sizes.expert

    @property
    def gathers(self) -> bool:
        """Whether FSDP2 gathers parameters before a layer runs; it averages over ``data`` alone too."""
        return self.parallel.gathers

    @property
    def gathers_bf16(self) -> bool:
        """Whether it gathers them in bf16, so that layers compute in it and tokens are in it between layers too."""
        return self.gathers and self.parallel.gather_dtype == "bf16"


@lru_cache(maxsize=512)
def stage_layers(
    config: DecoderConfig, processes: int, stages_per_process: int, seq_len: int
) -> tuple[tuple[range, ...], ...]:
    """By process of a pipeline, the layers of its stages, as even as their counted work allows."""
    if processes == 1:
        return ((range(len(config.blocks)),),)
    costs, head = layer_costs(shapes_of(config), seq_len)
    stages = split_layers(costs, processes * stages_per_process, head)
    return tuple(tuple(stages[process::processes]) for process in range(processes))


@dataclass(frozen=True)
class Numbers:
    """How many numbers of a module's parameters one process has.

    Attributes:
        kept: between steps: what its optimizer updates.
        computed: while the module runs, its parameters gathered: those that tensor and expert do not share out.
        gathered: of these, what FSDP2 gathers: all but shared experts.
    """

    kept: int = 0
    computed: int = 0
    gathered: int = 0

    @property
    def cut(self) -> int:
        """Of those kept, what FSDP2 cuts: all but shared experts, which are kept as they are computed with."""
        return self.kept - (self.computed - self.gathered)

    def __add__(self, other: Numbers) -> Numbers:
        return Numbers(self.kept + other.kept, self.computed + other.computed, self.gathered + other.gathered)


@lru_cache(maxsize=512)
def layer_numbers(config: DecoderConfig, parallel: ParallelConfig) -> tuple[Numbers, ...]:
    """Of each layer of the decoder, on the process with the largest part.

    Raises:
        ValueError: if heads, hidden units or experts cannot be shared evenly.
    """
    spread = Spread(parallel, ())
    return tuple(_numbers(block, spread) for block in shapes_of(config).blocks)


@lru_cache(maxsize=512)
def outer_numbers(config: DecoderConfig, parallel: ParallelConfig) -> dict[str, Numbers]:
    """Of ``"embedding"``, ``"norm"`` and, where it has a matrix of its own, ``"head"``.

    Raises:
        ValueError: if the vocabulary cannot be shared evenly.
    """
    spread, decoder = Spread(parallel, ()), shapes_of(config)
    right = f"a multiple of tensor={spread.tensor}"
    require(config.vocab_size % spread.tensor == 0, "vocab_size", config.vocab_size, right)
    rows = config.vocab_size // spread.tensor, config.dim
    found = {"embedding": _whole(rows, spread.cut), "norm": _numbers(decoder.norm, spread)}
    return found if decoder.head is None else found | {"head": _whole(rows, spread.cut)}


def process_numbers(config: DecoderConfig, spread: Spread, process: int) -> Numbers:
    """Of one process of a pipeline: its layers; of the first the embedding, of the last norm and head.

    A tied head is a copy of the embedding where the two are of different processes.
    """
    layers, outer = layer_numbers(config, spread.parallel), outer_numbers(config, spread.parallel)
    total = sum((layers[layer] for layer in spread.layers(process)), Numbers())
    first, last = process == 0, process == len(spread.stages) - 1
    if first:
        total += outer["embedding"]
    if last:
        total += outer["norm"] + outer.get("head", Numbers() if first else outer["embedding"])
    return total


def _numbers(module: nn.Module, spread: Spread) -> Numbers:
    """Of every parameter of ``module``."""
    total = Numbers()
    for part in module.modules():
        experts = isinstance(part, Experts) and spread.expert > 1
        cut = shares(part, spread.tensor) if spread.tensor > 1 else {}
        for name, parameter in part.named_parameters(recurse=False):
            shape = list(parameter.shape)
            if name in cut and cut[name].dim is not None:
                shape[cut[name].dim or 0] //= spread.tensor
            total += _shared_experts(shape, spread.expert) if experts else _whole(tuple(shape), spread.cut)
    return total


def _whole(shape: tuple[int, ...], cut: int) -> Numbers:
    """Gathered whole, and kept in rows: the first of ``cut`` processes has the most, ceil(rows / cut)."""
    rows, *rest = shape or (1,)
    count = math.prod(shape)
    return Numbers(-(-rows // cut) * math.prod(rest), count, count)


def _shared_experts(shape: list[int], expert: int) -> Numbers:
    """Experts stay where they are, in expert_data copies."""
    right = f"a multiple of expert={expert}"
    require(shape[0] % expert == 0, "num_experts", shape[0], right)
    count = math.prod((shape[0] // expert, *shape[1:]))
    return Numbers(count, count, 0)
