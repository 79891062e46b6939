"""Train a small MoE with a window, in 32 and in 64 bits, in as many processes as asked; write what it reached.

python train_twice.py FOLDER DEVICES
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from toolkit.compute import cost
from toolkit.data import ByteTokenizer, Corpus, CorpusReport, SplitReport
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.parallel import ParallelConfig, is_main_process, leave_process_group
from toolkit.training import TrainingConfig, fit

ATTENTION = AttentionConfig(heads=2, kv_heads=1, pattern="Causal() & SlidingWindow(8)")
MODEL = DecoderConfig(
    vocab_size=256,
    dim=16,
    blocks=(
        BlockConfig(ATTENTION, MoEConfig(16, num_experts=4, top_k=2, shared_experts=1)),
        BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(32)),
        BlockConfig(ATTENTION, MoEConfig(16, num_experts=4, top_k=1, balance=0.1)),
    ),
)
STEPS, WINDOWS = 30, 41
"""An odd number of validation windows, so that the processes' shares differ."""


def corpus() -> Corpus:
    words = np.random.default_rng(0).choice(["def", "return", "alpha", "beta", "loop", "x"], 6000)
    tokens = np.frombuffer(" ".join(words).encode(), dtype=np.uint8)
    train, validation = tokens[:-4000], tokens[-4000:]
    one, other = (SplitReport(("words",), len(side), len(side)) for side in (train, validation))
    return Corpus(train, validation, ByteTokenizer(), "0" * 64, CorpusReport(one, other, dropped=()))


def train(folder: Path, devices: int) -> None:
    torch.set_num_threads(1)
    parallel = ParallelConfig(devices=devices, accelerator="cpu", strategy="ddp" if devices > 1 else "auto")
    for precision in ("32-true", "64-true"):
        config = TrainingConfig(
            steps=STEPS, context=32, batch_size=4, learning_rate=3e-3, precision=precision, log_every=1, evaluations=3
        )
        budget = cost(MODEL, 32).training_flops["exact"] * config.tokens_per_step * STEPS
        run = folder / precision
        fitted = fit(MODEL, config, corpus(), run, budget, parallel=parallel, validation_count=WINDOWS)
        if is_main_process():
            (run / "fitted.json").write_text(json.dumps(asdict(fitted)))


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
    leave_process_group()
