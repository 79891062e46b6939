"""Pipeline parallelism: each process holds some consecutive layers, and micro-batches pass from one to the next.

Tested over gloo on CPUs. On GPUs NCCL runs the same code, not yet measured.

A pipeline's schedule runs forwards and backwards of several micro-batches in an order of its own. ``fit`` runs it with
``ParallelConfig(pipeline=4, micro_batches=16)``; :class:`PipelineTrainer` serves a plain loop, in every process the
same::

    meshes = build_mesh(ParallelConfig(pipeline=4, micro_batches=16))
    trainer = PipelineTrainer(Decoder(config), meshes, length=2048)
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
from toolkit.parallel.pipeline.losses import PipelineLosses, carry_loss, count_losses, token_loss
from toolkit.parallel.pipeline.optimizer import StageOptimizer
from toolkit.parallel.pipeline.stage import DecoderStage, keep_layers
from toolkit.parallel.pipeline.trainer import PipelineTrainer, require_alone

__all__ = [
    "DecoderStage",
    "PipelineLosses",
    "PipelineTrainer",
    "StageOptimizer",
    "carry_loss",
    "count_losses",
    "gather_stages",
    "keep_layers",
    "layer_costs",
    "require_alone",
    "split_layers",
    "token_loss",
]
