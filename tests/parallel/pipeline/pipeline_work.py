"""What the processes of the tests of pipelines do."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from toolkit.layers import MoE
from toolkit.layers.recomputation import recompute_layers
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel import ParallelConfig, SentBytes, build_mesh
from toolkit.parallel.pipeline import PipelineTrainer, gather_stages, token_loss
from toolkit.training.equivalence import Steps
from toolkit.training.pipelined_steps import train_pipelined

LENGTH, VOCAB_SIZE, DIM = 8, 32, 16
ATTENTION = AttentionConfig(heads=2, qk_norm=True)
DENSE = BlockConfig(ATTENTION, FeedForwardConfig(hidden_dim=24))
MOE = BlockConfig(ATTENTION, MoEConfig(hidden_dim=8, num_experts=4, top_k=2, shared_experts=1))
BIASED = BlockConfig(
    ATTENTION,
    MoEConfig(hidden_dim=8, num_experts=4, top_k=2, router="TopKRouter(score='sigmoid', balancer=BiasBalancer())"),
)
HASHED = BlockConfig(ATTENTION, MoEConfig(hidden_dim=8, num_experts=4, top_k=1, router="HashRouter()"))
SEQUENCE = BlockConfig(
    ATTENTION, replace(MOE.feed_forward, router="TopKRouter(losses=[LoadBalancingLoss(over='sequence')])")
)
DEPTHS = BlockConfig(ATTENTION, MOE.feed_forward, depth_capacity=0.5)
KINDS = {
    "dense": (DENSE,) * 4,
    "moe": (MOE, BIASED, DENSE, MOE),
    "depths": (DENSE, DEPTHS, MOE, DEPTHS),
    "hashed": (DENSE, HASHED, HASHED, DENSE),
    "sequence": (DENSE, SEQUENCE, DENSE, SEQUENCE),
}
"""Four layers; losses of one name are on several stages and not on all."""


def decoder(kind: str, **changes: Any) -> DecoderConfig:
    """A small decoder of four layers."""
    return DecoderConfig(vocab_size=VOCAB_SIZE, dim=DIM, blocks=KINDS[kind], **changes)


def train_all(cases: list[tuple[DecoderConfig, ParallelConfig, dict[str, Any]]]) -> list[Steps]:
    """Several trainings in the same processes, one after another."""
    return [train_pipelined(model, parallel, length=LENGTH, **settings) for model, parallel, settings in cases]


def trainer_of(kind: str, pipeline: int, **settings: Any) -> PipelineTrainer:
    """In fp64, of the weights of seed 0."""
    torch.manual_seed(0)
    changes = {"tied_head": settings.pop("tied_head", True)}
    model = Decoder(decoder(kind, **changes)).double()
    recompute_layers(model, settings.pop("recompute", "none"))
    parallel = ParallelConfig(pipeline=pipeline, **{"micro_batches": 4, **settings})
    return PipelineTrainer(model, build_mesh(parallel), length=LENGTH)


def windows(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and labels (batch, LENGTH), the same in every process."""
    tokens = torch.randint(VOCAB_SIZE, (batch, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


def several(tried: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """What each of some functions gives with its arguments, in the same processes."""
    return [work(*arguments) for work, arguments in tried]


def sent_bytes(tied_head: bool, schedule: str, stages_per_process: int) -> dict[str, float]:
    """By kind, of the second step; in the first stages agree to start."""
    settings = {"schedule": schedule, "stages_per_process": stages_per_process}
    trainer = trainer_of("dense", dist.get_world_size(), tied_head=tied_head, **settings)
    trainer.step(*windows(8))
    with SentBytes() as sent:
        trainer.step(*windows(8))
    return dict(sent.by_kind)


def accumulated() -> tuple[float, bool, bool]:
    """Two steps' gradients against twice one's: the worst difference; whether tied copies are alike; a clip's norm."""
    trainer = trainer_of("moe", dist.get_world_size())
    for loss in (m for m in trainer.decoder.modules() if hasattr(m, "micro_batches")):
        assert loss.micro_batches == 4
    trainer.step(*windows(8))
    once = {name: gradient.clone() for name, gradient in trainer.full_gradients().items()}
    trainer.step(*windows(8))
    twice = trainer.full_gradients()
    worst = max((2 * once[name] - twice[name]).abs().max().item() for name in once)
    norm = torch.linalg.vector_norm(torch.stack([each.norm() for each in twice.values()]))
    alike = _ends_alike(trainer)
    return worst, alike, bool((trainer.clip_gradients(1.0) - norm).abs() < 1e-12)


def _ends_alike(trainer: PipelineTrainer) -> bool:
    """Whether the gradient of every copy of the embedding is the same, bit for bit."""
    embedding = trainer.decoder.embedding
    own = None if embedding is None else embedding.weight.grad
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    here = [each for each in found if each is not None]
    return len(here) == 2 and torch.equal(*here)


def reported() -> tuple[float, dict[str, float], dict[str, list[float]], list[str]]:
    """A step's losses and the routers' counts, and the names of this process's parameters."""
    trainer = trainer_of("moe", dist.get_world_size())
    losses = trainer.step(*windows(8))
    stats = {path: each.counts.tolist() for path, each in trainer.routing_stats().items()}
    auxiliary = {name: loss.item() for name, loss in losses.auxiliary.items()}
    return losses.task.item(), auxiliary, stats, [name for name, _ in trainer.decoder.named_parameters()]


def evaluated() -> tuple[float, dict[str, list[float]], float]:
    """The loss in eval mode, a forward's loads of one sequence, and a training step's loss after it."""
    trainer = trainer_of("moe", dist.get_world_size())
    trainer.decoder.eval()
    loss = trainer.evaluate(*windows(8)).total.item()
    trainer.forward(windows(1)[0])
    own = {path: moe.stats.load for path, moe in trainer.decoder.named_modules() if isinstance(moe, MoE)}
    loads = gather_stages(own, trainer.group)
    assert all(stats.tokens == 8 * LENGTH for stats in trainer.routing_stats().values())
    trainer.decoder.train()
    return loss, {path: load.tolist() for path, load in loads.items()}, trainer.step(*windows(8)).total.item()


def kept_logits() -> tuple[list[int], int]:
    """Of an evaluation's micro-batches: whose logits are there when each one's loss is computed, and afterwards."""
    trainer = trainer_of("dense", dist.get_world_size())
    seen: list[weakref.ref[torch.Tensor]] = []

    def living() -> int:
        gc.collect()
        return sum(each() is not None for each in seen)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(weakref.ref(logits))
        counts.append(living())
        return token_loss(logits, labels)

    counts: list[int] = []
    trainer.evaluate(*windows(8), loss=loss)
    return counts, living()


def raised() -> str:
    """What the last stage's process says of a layer that cannot go on; no other waits for it."""
    trainer = trainer_of("dense", dist.get_world_size())
    last = trainer.stages[-1]

    def refuse(module: torch.nn.Module, inputs: object) -> None:
        raise MemoryError("the layer's own words")

    if last.is_last:
        last.blocks["3"].register_forward_pre_hook(refuse)
    try:
        trainer.forward(windows(1)[0])
    except MemoryError as error:
        return repr(error)
    return "nothing"


def packed() -> dict[str, torch.Tensor]:
    """Gradients of packed documents with padding."""
    trainer = trainer_of("moe", dist.get_world_size())
    input_ids, labels = windows(8)
    trainer.step(input_ids, labels, sequence_ids=documents())
    return {name: gradient.numpy() for name, gradient in trainer.full_gradients().items()}


def documents() -> torch.Tensor:
    """(8, LENGTH): two in each row and one place of padding."""
    return torch.tensor([0, 0, 0, 1, 1, 1, 1, -1]).expand(8, LENGTH)


def refusals() -> list[str]:
    """What is said of each bad setting."""
    trainer = trainer_of("dense", 2)
    input_ids, labels = windows(6)
    tries = [
        lambda: trainer.step(input_ids, labels),
        lambda: trainer.step(input_ids, labels[:, 1:]),
        lambda: trainer_of("dense", 2, schedule="interleaved", stages_per_process=3),
        lambda: trainer_of("dense", 2, micro_batches=1),
        lambda: trainer_of("dense", 2, schedule="interleaved", micro_batches=5),
        lambda: trainer_of("dense", 2, stages_per_process=2),
        lambda: trainer_of("dense", 2, schedule="zero bubble"),
        _recomputed,
        lambda: _beside(ParallelConfig(shard=2)),
    ]
    return [_refused(each) for each in tries]


def _recomputed() -> None:
    trainer_of("moe", 2, recompute="full")


def _beside(parallel: ParallelConfig) -> None:
    PipelineTrainer(Decoder(decoder("dense")), build_mesh(parallel), length=LENGTH)


def _refused(tried: Any) -> str:
    try:
        tried()
    except ValueError as error:
        return str(error)
    return "nothing"
