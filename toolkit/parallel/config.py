"""How many processes train one model, and how they share the work."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from toolkit.checks import require, require_choice, require_positive
from toolkit.parallel.micro_batches import require_schedule

ACCELERATORS = ("auto", "cpu", "gpu")
STRATEGIES = ("auto", "ddp")
GATHER_DTYPES = ("parameter", "bf16")
CONTEXT_METHODS = ("ring", "ulysses")
DIMENSIONS = ("pipeline", "data", "shard", "context", "tensor")
"""Of the mesh of processes, the slowest first: neighbours in ``tensor`` are neighbours in rank."""


@dataclass(frozen=True)
class ParallelConfig:
    """The processes of one training run, and what each of them holds.

    The processes stand in a mesh of pipeline * data * shard * context * tensor. Those of different ``data`` and
    ``shard`` take different sequences, those of one ``context`` group different parts of the same sequences, those of
    one ``tensor`` or ``pipeline`` group the same tokens.

    Attributes:
        devices: processes on each node, one a GPU; on a CPU they talk through gloo. None: as many as the sizes below
            ask for.
        num_nodes: nodes.
        accelerator: ``"auto"`` takes CUDA GPUs where there are any, else the CPU.
        strategy: ``"ddp"`` keeps a whole model in every process, each with its share of the batch;
            ``"auto"`` is ddp where there are several processes and only ``data`` is above 1, else what the sizes say.
        data: whole copies of the (sharded) model, whose gradients are averaged; None: what the others leave.
        shard: processes that share the parameters, gradients and optimizer state of one copy (ZeRO, FSDP2).
        tensor: processes that share the heads, hidden units and vocabulary of every layer.
        context: processes that share the tokens of every sequence.
        expert: processes that share the experts of every MoE; borrowed from data * shard * context, which it divides.
        pipeline: processes that share the layers.
        micro_batches: with ``pipeline``, parts of a process's batch that pass from stage to stage one after another:
            the share of the time that a stage waits is (pipeline - 1) / (micro_batches + pipeline - 1), with
            ``"interleaved"`` as of stages_per_process times the micro-batches. None: as many as processes.
        schedule: with ``pipeline``, the order in which they run: ``"1f1b"``, ``"gpipe"`` or ``"interleaved"``, see
            :class:`toolkit.parallel.pipeline.PipelineTrainer`.
        stages_per_process: with ``"interleaved"``, stages of each process, which are not neighbours.
        zero: with ``shard``, 3 frees the gathered parameters after a layer's forward and gathers them again for its
            backward; 2 keeps them in between: a third fewer bytes sent, more memory.
        gather_dtype: what ``shard`` gathers parameters in: ``"parameter"``, their own dtype, or ``"bf16"``, half the
            bytes of fp32: then every layer computes with bf16 weights, routers too, and gradients are summed in fp32.
        offload: keep the sharded parameters and the optimizer's state in the host's memory.
        context_method: with ``context``, ``"ring"`` moves keys and values, and takes any number of heads; ``"ulysses"``
            shares out heads, of which there must be a multiple of ``tensor`` * ``context``, and takes patterns that
            choose keys by content too.
        sequence_parallel: with ``tensor``, the residual stream and its norms are sharded over the tokens.

    Raises:
        ValueError: if a count is not positive, a choice unknown, the sizes do not multiply to the processes, or a
            setting is of something that these sizes do not do.

    Source: ZeRO: Rajbhandari et al. 2020 (arXiv 1910.02054); FSDP: Zhao et al. 2023 (arXiv 2304.11277); tensor
    parallelism: Shoeybi et al. 2019 (arXiv 1909.08053); sequence parallelism: Korthikanti et al. 2022 (arXiv
    2205.05198); context: Liu et al. 2023 (arXiv 2310.01889), Jacobs et al. 2023 (arXiv 2309.14509).

    >>> ParallelConfig(devices=8, shard=2, tensor=2).data
    2
    """

    devices: int | None = None
    num_nodes: int = 1
    accelerator: str = "auto"
    strategy: str = "auto"
    data: int | None = None
    shard: int = 1
    tensor: int = 1
    context: int = 1
    expert: int = 1
    pipeline: int = 1
    micro_batches: int | None = None
    schedule: str = "1f1b"
    stages_per_process: int = 1
    zero: int = 3
    gather_dtype: str = "parameter"
    offload: bool = False
    context_method: str = "ring"
    sequence_parallel: bool = True

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("devices", "num_nodes", *DIMENSIONS, "expert")}
        require_positive(**{name: size for name, size in sizes.items() if size is not None})
        require_choice("accelerator", self.accelerator, ACCELERATORS)
        require_choice("strategy", self.strategy, STRATEGIES)
        require_choice("zero", self.zero, (2, 3))
        require_choice("gather_dtype", self.gather_dtype, GATHER_DTYPES)
        require_choice("context_method", self.context_method, CONTEXT_METHODS)
        self._resolve()
        self._resolve_pipeline()
        spread = self.data_size * self.shard * self.context
        product = f"data {self.data} * shard {self.shard} * context {self.context} = {spread}"
        enough = math.lcm(spread, self.expert) // self.shard // self.context
        right = f"a divisor of {product}, which lend it their processes; data={enough} would do"
        require(spread % self.expert == 0, "expert", self.expert, right)
        plain = self.strategy == "auto" or self.is_replicated
        require(plain, "strategy", self.strategy, "'auto' where another size than data is above 1")
        for name, plain_value in (("gather_dtype", "parameter"), ("offload", False)):
            value = getattr(self, name)
            right = f"{plain_value!r} where parameters are not gathered, as with shard above 1"
            require(self.gathers or value == plain_value, name, value, right)

    def _resolve(self) -> None:
        """Fill in what was left None, or refuse sizes that do not multiply to the processes."""
        others = math.prod(getattr(self, name) for name in DIMENSIONS if name != "data")
        devices, data = self.devices, self.data
        if devices is None and data is None:
            data = self.num_nodes // math.gcd(others, self.num_nodes)
        if devices is None:
            assert data is not None
            whole = others * data % self.num_nodes == 0
            require(whole, "num_nodes", self.num_nodes, f"a divisor of {self._product(data)}")
            devices = others * data // self.num_nodes
        launched = devices * self.num_nodes
        if data is None and launched % others == 0:
            data = launched // others
        if data is None or data * others != launched:
            raise ValueError(self._mismatch(data, launched, others))
        object.__setattr__(self, "devices", devices)
        object.__setattr__(self, "data", data)

    def _resolve_pipeline(self) -> None:
        """Fill in the micro-batches, or refuse a schedule that is not a pipeline's or does not run with them."""
        if self.micro_batches is None:
            object.__setattr__(self, "micro_batches", self.pipeline)
        require_schedule(self.schedule, self.pipeline, self.micro_batch_count, self.stages_per_process)
        if self.pipeline == 1:
            plain = {"micro_batches": 1, "schedule": "1f1b", "stages_per_process": 1}
            for name, value in plain.items():
                given = getattr(self, name)
                require(given == value, name, given, f"{value!r} with pipeline=1; it is a pipeline's")

    def _product(self, data: int | None) -> str:
        """The sizes above 1 and what they multiply to, for what is refused."""
        sizes = {name: data if name == "data" else getattr(self, name) for name in DIMENSIONS}
        shown = {name: size for name, size in sizes.items() if size is not None and size > 1} or {"data": 1}
        return f"{' * '.join(f'{name} {size}' for name, size in shown.items())} = {math.prod(shown.values())}"

    def _mismatch(self, data: int | None, launched: int, others: int) -> str:
        processes = f"{launched} processes were asked for (devices {self.devices} * num_nodes {self.num_nodes})"
        if launched % others:
            help_ = f"{others} does not divide {launched}, so no data fits; {self.num_nodes} node(s) with devices a "
            help_ += f"multiple of {others // math.gcd(others, self.num_nodes)} would do"
        else:
            help_ = f"data=None would be {launched // others}, devices=None {self._needed(data, others)}"
        return f"{self._product(data)}, but {processes}: {help_}"

    def _needed(self, data: int | None, others: int) -> str:
        needed, nodes = others * (data or 1), self.num_nodes
        return f"{needed // nodes}" if needed % nodes == 0 else f"{needed} / {nodes}, which is not whole"

    @property
    def data_size(self) -> int:
        """``data`` as a number."""
        assert self.data is not None, "it is filled in"
        return self.data

    @property
    def micro_batch_count(self) -> int:
        """``micro_batches`` as a number; 1 without a pipeline."""
        assert self.micro_batches is not None, "it is filled in"
        return self.micro_batches

    @property
    def processes_per_node(self) -> int:
        """``devices`` as a number."""
        assert self.devices is not None, "it is filled in"
        return self.devices

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.processes_per_node * self.num_nodes

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the mesh, by :data:`DIMENSIONS`."""
        return self.pipeline, self.data_size, self.shard, self.context, self.tensor

    @property
    def batch_count(self) -> int:
        """Processes that take different sequences, or groups of such that take the same: data * shard."""
        return self.data_size * self.shard

    @property
    def is_replicated(self) -> bool:
        """Whether every process holds a whole model."""
        return self.shard == self.tensor == self.context == self.expert == self.pipeline == 1

    @property
    def gathers(self) -> bool:
        """Whether FSDP2 holds the parameters: those that processes of different tokens have, if not all is copied."""
        return self.pipeline == 1 and not self.is_replicated and self.data_size * self.shard * self.context > 1

    @property
    def device(self) -> str:
        """``"gpu"`` or ``"cpu"``: what ``accelerator`` comes to on this machine; GPUs are CUDA's.

        Raises:
            ValueError: if GPUs are asked for, or taken, and there are fewer than ``devices``.
        """
        gpus = torch.cuda.device_count()
        if self.accelerator == "cpu" or (self.accelerator == "auto" and gpus == 0):
            return "cpu"
        enough = self.processes_per_node <= gpus
        require(enough, "devices", self.devices, f"at most {gpus}, the CUDA GPUs of this machine")
        return "gpu"

    @property
    def lightning_strategy(self) -> str:
        """The strategy's name for Lightning's Trainer, where every process holds a whole model.

        ``toolkit.training.strategy`` has the others.
        """
        return "ddp" if self.strategy == "ddp" or self.world_size > 1 else "auto"

    def check_launch(self) -> None:
        """See that a launcher (torchrun, say) started as many processes as these settings mean.

        Raises:
            ValueError: if it did not.
        """
        launched = int(os.environ.get("WORLD_SIZE", self.world_size))
        require(
            launched == self.world_size,
            "devices",
            self.devices,
            f"such that devices * num_nodes = {launched}, the processes that were launched",
        )

    def local_batch(self, batch_size: int) -> int:
        """Sequences of a global batch that each process takes; a pipeline's in ``micro_batches`` parts.

        Raises:
            ValueError: if the batch cannot be shared evenly.
        """
        count, parts = self.batch_count, self.micro_batch_count
        right = f"a multiple of data * shard = {self.data} * {self.shard} = {count}"
        if parts > 1:
            right = (
                f"a multiple of data * shard * micro_batches = {self.data} * {self.shard} * {parts} = {count * parts}"
            )
        require(batch_size % (count * parts) == 0, "batch_size", batch_size, right)
        return batch_size // count


def is_main_process() -> bool:
    """Whether this process has rank 0, as launchers (Lightning's, torchrun, SLURM) set it before anything runs."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    # Lightning's own launcher gives its children a LOCAL_RANK; inside an allocation they inherit SLURM's too.
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    if "LOCAL_RANK" in os.environ or node != "0":
        return node == "0" and os.environ.get("LOCAL_RANK", "0") == "0"
    return os.environ.get("SLURM_PROCID", "0") == "0"
