"""The settings of a run: what is refused, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from toolkit.training import TrainingConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *[
            ({name: value}, f"{name}={value}: it must be positive")
            for name in ("steps", "context", "batch_size", "learning_rate", "eps", "gradient_clip", "log_every")
            for value in (0, -1)
        ],
        ({"evaluations": 0}, "evaluations=0: it must be positive"),
        ({"context": 8, "validation_block": 12}, "validation_block=12: it must be a multiple of context=8, or None"),
        ({"validation_block": 0}, "validation_block=0: it must be a multiple"),
        ({"checkpoint_minutes": 0.0}, "checkpoint_minutes=0.0: it must be positive"),
        *[
            ({name: value}, f"{name}={value}: it must be between 0 and 1")
            for name in ("warmup_share", "decay_share", "final_share", "beta1", "beta2")
            for value in (-0.1, 1.1)
        ],
        ({"weight_decay": -0.1}, "weight_decay=-0.1: it must be 0 or more"),
        ({"schedule": "linear"}, "schedule='linear': it must be one of 'cosine', 'wsd'"),
        ({"precision": "16-mixed"}, "precision='16-mixed': it must be one of"),
        ({"schedule": "wsd", "warmup_share": 0.5, "decay_share": 0.6}, "warmup_share=0.5: it must be at most"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{"steps": 10, **settings})


def test_a_decay_that_cosine_does_not_have_limits_nothing() -> None:
    assert TrainingConfig(steps=10, schedule="cosine", warmup_share=0.9, decay_share=0.9).warmup_share == 0.9


def test_tokens_of_a_step() -> None:
    assert TrainingConfig(steps=10, context=32, batch_size=6).tokens_per_step == 192
