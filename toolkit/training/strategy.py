"""How Lightning trains a model that is spread over a mesh of processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from toolkit.checks import require
from toolkit.parallel import (
    Meshes,
    ParallelConfig,
    build_mesh,
    full_optimizer_state,
    full_state_dict,
    load_full_optimizer_state,
    load_full_state_dict,
    parallelize,
)
from toolkit.parallel.pipeline import PipelineTrainer, StageOptimizer, gather_stages, require_alone
from toolkit.training.parts import own_part
from toolkit.training.passes import PipelinePasses

Place = tuple[int, int]
"""(pipeline stage, reader of the batch): processes of one place draw the same random numbers."""


class MeshStrategy(DDPStrategy):
    """Spreads the decoder of a :class:`toolkit.training.LanguageModel` over processes as a ``ParallelConfig`` says.

    Processes are launched, and values reduced, as Lightning's DDP does; the model is not wrapped but changed in place,
    on its device, once a trainer sets it up. Lightning's ``ModelParallelStrategy`` has two dimensions and no fp64.

    With ``pipeline`` above 1 a process keeps its stages' layers, and a training step runs the schedule's forwards and
    backwards of all micro-batches: Lightning then has a loss whose gradients are there already
    (:class:`toolkit.training.passes.PipelinePasses`).

    Checkpoints hold the whole model and optimizer, gathered and written by rank 0, as one process would write them: a
    run can go on with other sizes. Gradients are clipped by the module, over every mesh; batches are chosen by
    :func:`batch_reader`.

    Args:
        parallel: the sizes; more than ``data`` above 1.

    Raises:
        ValueError: if ``pipeline`` stands beside another size than ``data``; when set up, as
            :class:`toolkit.parallel.pipeline.PipelineTrainer` and :func:`toolkit.parallel.parallelize` do.
    """

    def __init__(self, parallel: ParallelConfig) -> None:
        if parallel.pipeline > 1:
            require_alone(parallel)
        # Offloaded gradients are reduced on the GPU and their norm on the CPU.
        both = parallel.offload and parallel.device == "gpu"
        super().__init__(process_group_backend="cpu:gloo,cuda:nccl" if both else None)
        self.parallel = parallel
        self._meshes: Meshes | None = None
        self._stages: StageOptimizer | None = None  # in a pipeline
        self._names: list[str] = []  # of the whole module's tensors

    @property
    def meshes(self) -> Meshes:
        """The meshes of the run's processes.

        Raises:
            ValueError: before a trainer has set the strategy up.
        """
        if self._meshes is None:
            raise ValueError("meshes: there are none before a trainer has set this strategy up")
        return self._meshes

    def setup(self, trainer: lightning.Trainer) -> None:
        """Move the model to its device, spread it (once), and make its optimizer."""
        assert self.accelerator is not None and self.model is not None, "the trainer has set them"
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        if self._meshes is None:
            self._spread()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def _spread(self) -> None:
        module: Any = self.lightning_module
        state = module.state_dict()
        for tensor in state.values():
            dist.broadcast(tensor, 0)  # as DDP does: every process begins with rank 0's weights
        self._names = list(state)
        self._meshes = build_mesh(self.parallel, self.root_device.type)
        if self.parallel.pipeline == 1:
            parallelize(module.decoder, self._meshes)
            return
        length, context = module.training_config.context, self.precision_plugin.forward_context
        pipeline = PipelineTrainer(module.decoder, self._meshes, length=length, context=context)
        module.passes = PipelinePasses(pipeline)
        groups = [[f"decoder.{name}" for name in names] for names in module.parameter_groups.values()]
        self._stages = StageOptimizer(module, groups, pipeline.group)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's; a pipeline's forwards enter the precision's context themselves, and its backwards do not."""
        if self._stages is None:
            return super().training_step(*args, **kwargs)
        return self._lightning.training_step(*args, **kwargs)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """This process's part of the batch that it read, on its device."""
        return super().batch_to_device(own_part(batch, self._meshes), device, dataloader_idx)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """A checkpoint's whole tensors are cut when the model is."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole module's state; a collective call."""
        if self._stages is None:
            return full_state_dict(self._module)
        whole = gather_stages(self._module.state_dict(), self._stages.group)
        return {name: whole[name] for name in self._names}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Keep this process's part of a whole module's state."""
        state = checkpoint["state_dict"]
        if self._stages is not None:
            odd = sorted(set(self._names) ^ state.keys())
            require(not strict or not odd, "state", f"one that differs in {odd}", "of the same names as the module's")
            state = {name: state[name] for name in self._module.state_dict() if name in state}
        load_full_state_dict(self._module, state, strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole optimizer's state; a collective call."""
        state = full_optimizer_state(plain(optimizer), self._module)
        return state if self._stages is None else self._stages.gathered(state)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Keep this process's part of the whole optimizers' states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            own = state if self._stages is None else self._stages.part_of(state)
            load_full_optimizer_state(optimizer, self._module, own)

    def teardown(self) -> None:
        """Leave the model where it is: its parts can be gathered there only."""
        assert self.cluster_environment is not None and self.accelerator is not None, "the trainer has set them"
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()

    @property
    def _module(self) -> torch.nn.Module:
        return self._lightning

    @property
    def _lightning(self) -> lightning.LightningModule:
        assert self.lightning_module is not None, "the trainer has set it"
        return self.lightning_module


def plain(optimizer: Optimizer) -> Optimizer:
    """The optimizer within Lightning's."""
    return optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def strategy_of(parallel: ParallelConfig) -> str | MeshStrategy:
    """What a Trainer is given for ``strategy``: Lightning's own where every process holds a whole model."""
    return parallel.lightning_strategy if parallel.is_replicated else MeshStrategy(parallel)


def meshes_of(trainer: lightning.Trainer) -> Meshes | None:
    """Those that a trainer's model is spread over; None where every process holds a whole model."""
    strategy = getattr(trainer, "strategy", None)
    return strategy.meshes if isinstance(strategy, MeshStrategy) else None


def batch_reader(trainer: lightning.Trainer) -> tuple[int, int]:
    """Which of how many different shares of a batch this process reads.

    Processes that share a model's layers, heads or the tokens of a sequence read the same.
    """
    meshes = meshes_of(trainer)
    return (trainer.global_rank, trainer.world_size) if meshes is None else (meshes.batch_rank, meshes.batch_count)


def token_parts(trainer: lightning.Trainer) -> int:
    """Processes that train on different tokens, a part of the batch each, all as large."""
    strategy = getattr(trainer, "strategy", None)
    shares = strategy.parallel.context if isinstance(strategy, MeshStrategy) else 1
    return batch_reader(trainer)[1] * shares


def draw_places(trainer: lightning.Trainer) -> tuple[int, int]:
    """(stages, readers): how many places there are that draw different random numbers."""
    strategy = getattr(trainer, "strategy", None)
    stages = strategy.parallel.pipeline if isinstance(strategy, MeshStrategy) else 1
    return stages, batch_reader(trainer)[1]


def draw_place(trainer: lightning.Trainer) -> Place:
    """Where this process stands among those that draw different random numbers.

    Others' sequences, and other layers, are to be dropped and perturbed independently; but routers that processes share
    (tensor, context) must choose the same for the same tokens.
    """
    meshes = meshes_of(trainer)
    return 0 if meshes is None else meshes.rank_in("pipeline"), batch_reader(trainer)[0]
