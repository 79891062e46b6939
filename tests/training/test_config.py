"""The settings of a run: what is refused, and in which words."""

from __future__ import annotations

from dataclasses import fields, replace
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
        ({"warmup_steps": -1}, "warmup_steps=-1: it must be between 0 and 10"),
        ({"warmup_steps": 11}, "warmup_steps=11: it must be between 0 and 10, what a decay of 0 leaves of 10 steps"),
        (
            {"schedule": "wsd", "decay_share": 0.3, "warmup_steps": 8},
            "warmup_steps=8: it must be between 0 and 7, what a decay of 3 leaves of 10 steps, or None",
        ),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{"steps": 10, **settings})


def test_a_decay_that_cosine_does_not_have_limits_nothing() -> None:
    assert TrainingConfig(steps=10, schedule="cosine", warmup_share=0.9, decay_share=0.9).warmup_share == 0.9


def test_a_warmup_in_steps_stands_in_place_of_the_share() -> None:
    config = TrainingConfig(steps=100, warmup_share=0.5, warmup_steps=7)
    assert config.warmup == 7
    assert replace(config, warmup_steps=0).warmup == 0
    assert replace(config, warmup_steps=None).warmup == 50
    assert TrainingConfig(steps=100, schedule="wsd", decay_share=0.9, warmup_share=1.0, warmup_steps=10).warmup == 10


@pytest.mark.parametrize("steps", range(1, 25))
@pytest.mark.parametrize("warmup_share", [0.0, 0.1, 0.25, 0.5, 0.75])
def test_shares_that_fill_the_run_do_not_overlap_in_steps(steps: int, warmup_share: float) -> None:
    """Both may round up: half of three steps is 1.5 of each."""
    config = TrainingConfig(steps=steps, schedule="wsd", warmup_share=warmup_share, decay_share=1 - warmup_share)
    assert config.warmup <= config.decay_start
    assert abs(config.decay - (1 - warmup_share) * steps) <= 1


@pytest.mark.parametrize("name", [field.name for field in fields(TrainingConfig)])
def test_what_the_steps_before_the_decay_depend_on(name: str) -> None:
    """All settings but the run's and the decay's length and depth, and what trains nothing; the warmup in steps."""
    values: dict[str, Any] = {"schedule": "cosine", "precision": "64-true", "validation_block": 256, "warmup_steps": 3}
    values["recompute"] = "full"
    config = TrainingConfig(steps=100, schedule="wsd", warmup_steps=9)
    other = replace(config, **{name: values[name] if name in values else getattr(config, name) / 2 or 1})
    free = {"steps", "warmup_share", "decay_share", "final_share", "evaluations", "checkpoint_minutes", "recompute"}
    assert (other.until_decay == config.until_decay) == (name in free)


def test_tokens_of_a_step() -> None:
    assert TrainingConfig(steps=10, context=32, batch_size=6).tokens_per_step == 192
