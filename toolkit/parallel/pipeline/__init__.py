"""Pipeline parallelism: each process holds some consecutive layers, and micro-batches pass from one to the next.

Tested over gloo on CPUs. On GPUs NCCL runs the same code, not yet measured.

A pipeline has a loop of its own: its schedule runs forwards and backwards of several micro-batches in an order of its
own, where Lightning's loop asks a module for one loss and calls its backward. So ``fit`` refuses ``pipeline`` above 1,
and :class:`PipelineTrainer` serves a plain loop, in every process the same::

    meshes = build_mesh(ParallelConfig(pipeline=4))
    trainer = PipelineTrainer(Decoder(config), meshes, length=2048, micro_batches=16)
    optimizer = build_optimizer(trainer.decoder, training)
    for input_ids, labels in batches:            # processes of one pipeline read the same
        optimizer.zero_grad()
        losses = trainer.step(input_ids, labels)
        trainer.clip_gradients(1.0)
        optimizer.step()
        update_balancers(trainer.decoder)
"""

from toolkit.parallel.pipeline.balance import layer_costs, split_layers
from toolkit.parallel.pipeline.gather import gather_stages
from toolkit.parallel.pipeline.losses import carry_loss, count_losses
from toolkit.parallel.pipeline.schedule import SCHEDULES
from toolkit.parallel.pipeline.stage import DecoderStage, keep_layers
from toolkit.parallel.pipeline.trainer import PipelineLosses, PipelineTrainer, token_loss

__all__ = [
    "SCHEDULES",
    "DecoderStage",
    "PipelineLosses",
    "PipelineTrainer",
    "carry_loss",
    "count_losses",
    "gather_stages",
    "keep_layers",
    "layer_costs",
    "split_layers",
    "token_loss",
]
