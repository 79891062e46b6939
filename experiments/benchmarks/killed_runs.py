"""A small run with everything random that training has, in one or several processes that are killed and started again.

Processes are forked from a server that has imported Lightning already, and meet as those of a launcher do.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import time
import traceback
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

HERE = str(Path(__file__).parent)
STEPS = 60
TIMEOUT = 120.0
KINDS = ("dense", "moe")


def start(folder: Path, kind: str, world_size: int, **changes: Any) -> list[BaseProcess]:
    """The processes of one run, by rank; what each prints and raises is in ``<folder>.<rank>.log``."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "lightning", "toolkit.training.run", "tensorboard"])
    port = _free_port()
    started: list[BaseProcess] = [
        context.Process(target=_process, args=(str(folder), kind, rank, world_size, port, changes), daemon=True)
        for rank in range(world_size)
    ]
    for process in started:
        process.start()
    return started


def losses(folder: Path) -> dict[int, float]:
    """By step; JSON keeps every bit."""
    table = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines() if line.endswith("}")] if table.exists() else []
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def finish(folder: Path, kind: str, world_size: int, **changes: Any) -> None:
    """Train to the end, from wherever the folder stands.

    Raises:
        RuntimeError: if a process fails, or takes longer than ``TIMEOUT`` seconds.
    """
    for rank, process in enumerate(start(folder, kind, world_size, **changes)):
        process.join(TIMEOUT)
        if process.exitcode != 0:
            raise RuntimeError(f"rank {rank} ended with {process.exitcode}: {log_of(folder, rank)}")


def kill_at(folder: Path, kind: str, world_size: int, step: int, **changes: Any) -> int:
    """Train, and kill all processes with signal 9 when the loss of ``step`` is written; the last step that was.

    Raises:
        RuntimeError: if a process ends by itself before that, or it takes longer than ``TIMEOUT`` seconds.
    """
    processes, end = start(folder, kind, world_size, **changes), time.monotonic() + TIMEOUT
    while max(losses(folder), default=0) < step:
        if time.monotonic() > end or not all(process.is_alive() for process in processes):
            raise RuntimeError(f"it did not come to step {step}: {[log_of(folder, r) for r in range(world_size)]}")
        time.sleep(0.001)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    return max(losses(folder))


def saved_step(folder: Path) -> int:
    """What a run in ``folder`` would go on from: the step of its newest whole checkpoint."""
    from toolkit.training.checkpoints import CheckpointStore, read_checkpoint

    newest = CheckpointStore(folder).newest()
    return 0 if newest is None else int(read_checkpoint(newest)["global_step"])


def final_weights(folder: Path) -> dict[str, Any]:
    """Of the last checkpoint, file or folder."""
    from toolkit.training.checkpoints import read_checkpoint

    return dict(read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"])


def _free_port() -> int:
    """Below those that the system gives to whoever connects, one of whom could take it before the processes meet."""
    while True:
        port = random.SystemRandom().randrange(15000, 30000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def log_of(folder: Path, rank: int) -> str:
    """What a process printed and raised."""
    path = Path(f"{folder}.{rank}.log")
    return path.read_text() if path.exists() else ""


def _process(folder: str, kind: str, rank: int, world_size: int, port: int, changes: dict[str, Any]) -> None:
    sys.path.insert(0, HERE)
    log = os.open(f"{folder}.{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if world_size > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1")
    code = 0
    try:
        train(Path(folder), kind, world_size, **changes)
    except SystemExit as left:
        print(left)
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)  # as an interpreter that does not wait for what others hold


def train(
    folder: Path,
    kind: str,
    world_size: int,
    steps: int = STEPS,
    die_at: tuple[int, int] | None = None,
    nan_at: tuple[int, int] | None = None,
    shard: int = 1,
    pause: float = 0.0,
    slow_clock: bool = False,
) -> None:
    """Train in this process.

    Args:
        folder: the run's.
        kind: ``"dense"`` or ``"moe"``.
        world_size: processes.
        steps: of the run.
        die_at: (rank, step) at which a process ends without a word.
        nan_at: (rank, step) at which a weight of the second layer turns NaN in one process.
        shard: of the processes, those that share the parameters.
        pause: seconds to wait after every step.
        slow_clock: save at the end only.
    """
    import torch

    from toolkit.compute import cost
    from toolkit.data import ByteTokenizer, Corpus, CorpusReport, SplitReport
    from toolkit.parallel import ParallelConfig
    from toolkit.parallel.failure import PeerWatch
    from toolkit.training import TrainingConfig, run

    torch.set_num_threads(1)
    run.PeerWatch = lambda: PeerWatch(beat=0.1, patience=2.0, timeout=6.0)  # type: ignore[misc, assignment]
    tokens = np.random.default_rng(0).integers(0, 64, 3000).astype(np.uint8)
    report = CorpusReport(SplitReport(("x",), 600, 600), SplitReport(("x",), 2400, 2400), dropped=())
    corpus = Corpus(tokens[:600], tokens[600:], ByteTokenizer(), "0" * 64, report)  # an epoch is nine steps
    config = TrainingConfig(
        steps, context=16, batch_size=4, learning_rate=3e-3, precision="32-true", log_every=1, evaluations=3,
        checkpoint_minutes=60.0 if slow_clock else 1e-7,
    )  # fmt: skip
    model = decoder_config(kind)
    accident = _accident(die_at, nan_at, pause)
    budget = cost(model, 16).training_flops["exact"] * config.tokens_per_step * steps
    parallel = ParallelConfig(devices=world_size, accelerator="cpu", shard=shard)
    original = run.ExactResume
    run.ExactResume = accident(original)  # type: ignore[misc]
    run.fit(model, config, corpus, folder, budget, parallel=parallel, validation_count=4)


def decoder_config(kind: str) -> Any:
    """Attention with dropout; of ``"moe"`` one router with jitter and one with Gaussian noise and a moving bias."""
    from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig

    attention = AttentionConfig(heads=2, dropout_p=0.2)
    dense = BlockConfig(attention, FeedForwardConfig(32))
    if kind == "dense":
        return DecoderConfig(vocab_size=256, dim=16, blocks=(dense, dense))
    noisy = "TopKRouter(score='sigmoid', noise=GaussianNoise(), balancer=BiasBalancer())"
    first = BlockConfig(attention, MoEConfig(16, 4, 2, router="TopKRouter(noise=Jitter(0.1))"))
    return DecoderConfig(
        vocab_size=256, dim=16, blocks=(first, BlockConfig(attention, MoEConfig(16, 4, 2, router=noisy)))
    )


def _accident(die_at: tuple[int, int] | None, nan_at: tuple[int, int] | None, pause: float) -> Any:
    """What goes wrong, as a subclass of a callback that every run has."""
    import torch

    def subclass(base: type) -> type:
        class Accident(base):
            def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
                super().on_train_batch_start(trainer, module, batch, batch_idx)
                here = trainer.global_rank, trainer.global_step
                if here == die_at:
                    os._exit(9)
                if here == nan_at:
                    with torch.no_grad():
                        next(iter(module.decoder.blocks[1].feed_forward.parameters())).view(-1)[0] = torch.nan
                time.sleep(pause)

        Accident.__qualname__ = base.__qualname__  # Lightning keeps a callback's state under it
        return Accident

    return subclass
