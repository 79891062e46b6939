"""Runs of ``fit`` through a pipeline, in as many processes as there are, and one process's steps to compare with."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import lightning
import torch
from torch import Tensor

from toolkit.data import TaskMixture, TokenWindows
from toolkit.data.synthetic import Passkey
from toolkit.layers import MoE, auxiliary_losses
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel import ParallelConfig
from toolkit.parallel.pipeline import token_loss
from toolkit.routing import LoadBalancingLoss, RoutingStats, update_balancers
from toolkit.training import LanguageModel, build_optimizer, fit, learning_rate_factor
from toolkit.training import run as training_run
from toolkit.training.interruption import Interrupted
from toolkit.training.progress import ReportProgress

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))

from training_cases import budget, corpus, training

ATTENTION = AttentionConfig(heads=2)
MOE = BlockConfig(ATTENTION, MoEConfig(hidden_dim=8, num_experts=4, top_k=2))
BIASED = BlockConfig(ATTENTION, MoEConfig(8, 4, 2, router="TopKRouter(score='sigmoid', balancer=BiasBalancer())"))
DENSE = BlockConfig(ATTENTION, FeedForwardConfig(24))
MODEL = DecoderConfig(vocab_size=256, dim=16, blocks=(MOE, DENSE, BIASED, DENSE, MOE), tied_head=True, mup_base_dim=8)
NOISY = replace(
    MODEL,
    mup_base_dim=None,
    blocks=(
        BlockConfig(replace(ATTENTION, dropout_p=0.2), MoEConfig(8, 4, 2, router="TopKRouter(noise=Jitter(0.5))")),
        DENSE,
    )
    * 2,
)
LOSS_FREE = replace(
    MODEL,
    blocks=(
        BlockConfig(
            ATTENTION, MoEConfig(8, 4, 2, router="TopKRouter(score='sigmoid', balancer=BiasBalancer(), losses=[])")
        ),
        DENSE,
        DENSE,
    ),
)
"""Micro-batches are nothing to it: no loss is over a batch, and biases move by a whole step's counts."""
STEPS, MICRO_BATCHES = 6, 4
CONFIG = training(
    steps=STEPS,
    precision="64-true",
    gradient_clip=0.1,
    log_every=1,
    evaluations=2,
    batch_size=8,
    learning_rate=1e-2,
)

MIXTURE = TaskMixture(Passkey(length=CONFIG.context, digits=2, words=4), 0.5, 256)
MIXED = replace(LOSS_FREE, vocab_size=MIXTURE.vocab_size)


def run(
    folder: Path,
    parallel: ParallelConfig,
    model: DecoderConfig = MODEL,
    stop_after: int | None = None,
    mixture: TaskMixture | None = None,
) -> dict[str, Any]:
    """What ``fit`` reached; with ``stop_after`` it is told to end there, of ``STEPS`` steps, and nothing is reached."""

    def stop(step: int, steps: int) -> None:
        if step == stop_after:
            signal.raise_signal(signal.SIGTERM)

    every_step = partial(ReportProgress, seconds=0.0)
    with mock.patch.object(training_run, "ReportProgress", every_step), suppress(Interrupted):
        spent, settings = budget(CONFIG, model), {"parallel": parallel, "mixture": mixture, "report": stop}
        return asdict(fit(model, CONFIG, corpus(), folder, spent, validation_count=16, **settings))
    return {}


def runs(cases: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Several of :func:`run`, one after another in the same processes."""
    return [run(*case) for case in cases]


def accumulated(readers: int = 1) -> dict[str, Any]:
    """The same steps in one process, in a plain loop over the micro-batches.

    Of each step the loss, the learning rate and what every MoE routed; then the decoder's state and its nats per byte.
    """
    lightning.seed_everything(CONFIG.seed, verbose=False)
    decoder = LanguageModel(MODEL, CONFIG).decoder.double()
    for loss in (module for module in decoder.modules() if isinstance(module, LoadBalancingLoss)):
        loss.micro_batches = MICRO_BATCHES
    optimizer = build_optimizer(decoder, CONFIG)
    rates = [group["lr"] for group in optimizer.param_groups]
    rows = []
    for step in range(STEPS):
        factor = learning_rate_factor(step, CONFIG)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.zero_grad()
        nll, stats = 0.0, dict[str, RoutingStats]()
        for part in micro_batches(step, readers):
            loss = token_loss(decoder(part[:, :-1]).logits, part[:, 1:])
            nll += loss.item() / MICRO_BATCHES
            ((loss + sum(auxiliary_losses(decoder).values())) / MICRO_BATCHES).backward()
            for path, moe in decoder.named_modules():
                if isinstance(moe, MoE):
                    stats[path] = stats[path] + moe.stats if path in stats else moe.stats
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), CONFIG.gradient_clip)
        optimizer.step()
        update_balancers(decoder)
        rows.append({"loss": nll, "rate": rates[0] * factor, "stats": stats})
    return {"rows": rows, "state": decoder.state_dict(), "decoder": decoder.eval()}


def micro_batches(step: int, readers: int) -> list[Tensor]:
    """Of a step: each of all readers' rows."""
    size, seed = CONFIG.batch_size, CONFIG.seed
    shares = [
        TokenWindows(corpus().train, CONFIG.context, size, seed, rank=rank, world_size=readers).batch(step)
        for rank in range(readers)
    ]
    return [torch.cat(parts) for parts in zip(*(share.chunk(MICRO_BATCHES) for share in shares), strict=True)]
