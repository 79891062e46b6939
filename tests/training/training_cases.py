"""A small text, small models and short runs, for the tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.compute import cost
from toolkit.data import ByteTokenizer, Corpus, CorpusReport, SplitReport
from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.training import TrainingConfig

WORDS = ("def", "return", "alpha", "beta", "loop", "x", "y", "gamma")
DENSE = BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(32))
MOE = BlockConfig(AttentionConfig(heads=2, pattern="Causal() & SlidingWindow(8)"), MoEConfig(16, 4, 2))
MODEL = DecoderConfig(vocab_size=256, dim=16, blocks=(MOE, DENSE, MOE))
WINDOWS = 40
"""Validation windows."""


def corpus() -> Corpus:
    """Words in random order."""
    words = np.random.default_rng(0).choice(WORDS, 6000)
    tokens = np.frombuffer(" ".join(words).encode(), dtype=np.uint8)
    train, validation = tokens[:-4000], tokens[-4000:]
    one, other = (SplitReport(("words",), len(side), len(side)) for side in (train, validation))
    return Corpus(train, validation, ByteTokenizer(), "0" * 64, CorpusReport(one, other, dropped=()))


def training(**changes: Any) -> TrainingConfig:
    """Forty steps of four sequences of 32 tokens."""
    settings: dict[str, Any] = {
        "steps": 40,
        "context": 32,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "precision": "32-true",
        "log_every": 5,
        "evaluations": 2,
    }
    return TrainingConfig(**{**settings, **changes})


def budget(config: TrainingConfig, model: DecoderConfig = MODEL, steps: float | None = None) -> float:
    """FLOPs of ``steps`` steps, of all that are planned by default."""
    step = cost(model, config.context).training_flops["exact"] * config.tokens_per_step
    return step * (config.steps if steps is None else steps)


def metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's table, without the one column that a clock fills."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "milliseconds"} for row in rows]
