"""The plan of an extension: every method the same extra FLOPs, on the base run's tokens a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.compute import cost
from toolkit.layers.rotary import parse_scaling
from toolkit.models import DecoderConfig
from toolkit.scaling.extension.methods import NAMES
from toolkit.scaling.extension.plan import (
    ExtensionConfig,
    ExtensionModel,
    PlannedStage,
    passkeys,
    plan_base,
    plan_tuning,
    scaled_models,
)
from toolkit.training import TrainingConfig

MODEL = ExtensionModel(dim=16, layers=2, heads=2, feed_forward_dim=32)
TRAINING = TrainingConfig(steps=100, context=64, batch_size=8)


def stages(config: ExtensionConfig, training: TrainingConfig = TRAINING, seed: int = 0) -> list[PlannedStage]:
    """The base run, then the fine-tunes."""
    vocab_size = passkeys(config, training.context, 256).vocab_size
    base = plan_base(MODEL, vocab_size, training, seed)
    models = scaled_models(MODEL, config, training.context, vocab_size)
    return [base, *plan_tuning(base, models, config)]


@settings(max_examples=20)
@given(steps=st.integers(20, 400), multiple=st.sampled_from([1, 2, 4]), share=st.floats(0.1, 2.0))
def test_every_method_spends_the_same_extra_flops_to_half_a_step(steps: int, multiple: int, share: float) -> None:
    config = ExtensionConfig(tune_multiple=multiple, extra_share=share)
    base, *tuned = stages(config, replace(TRAINING, steps=steps))
    assert [stage.method.name for stage in tuned] == list(NAMES)
    assert len({stage.flops for stage in tuned}) == 1
    for stage in tuned:
        step = cost(stage.model, 64 * multiple).training_flops["exact"] * TRAINING.tokens_per_step
        assert stage.budget == pytest.approx(share * base.flops)
        assert abs(stage.training.steps * step - stage.budget) <= step / 2 * (1 + 1e-9)


def test_a_fine_tune_has_the_base_run_s_tokens_a_step_in_longer_sequences() -> None:
    base, *tuned = stages(ExtensionConfig(tune_multiple=4, tune_learning_rate=2e-4))
    for stage in tuned:
        assert stage.training.context == 4 * base.training.context
        assert stage.training.tokens_per_step == base.training.tokens_per_step
        assert stage.training.learning_rate == 2e-4


def test_only_the_scaling_tells_the_models_apart() -> None:
    base, *tuned = stages(ExtensionConfig())

    def without(model: DecoderConfig) -> DecoderConfig:
        blocks = (replace(block, attention=replace(block.attention, rope_scaling=None)) for block in model.blocks)
        return replace(model, blocks=tuple(blocks))

    assert {without(stage.model) for stage in tuned} == {base.model}
    assert len({stage.model for stage in tuned}) == len(tuned)
    texts = [stage.model.blocks[0].attention.rope_scaling for stage in tuned]
    assert all(str(parse_scaling(text)) == text for text in texts if text is not None)
    assert all(DecoderConfig.from_dict(stage.model.to_dict()) == stage.model for stage in tuned)


def test_no_seed_is_used_twice_and_no_folder() -> None:
    config = ExtensionConfig(seeds=3)
    planned = [stage for seed in range(3) for stage in stages(config, seed=seed)]
    assert len({stage.name for stage in planned}) == len(planned)
    base = {stage.training.seed for stage in planned if stage.base}
    tuned = {stage.training.seed for stage in planned if not stage.base}
    assert base == {0, 1, 2}
    assert not base & tuned


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multiples": (2, 4)}, "multiples=.*1, and then larger ones, ascending"),
        ({"multiples": (1,)}, "multiples=.*1, and then larger ones"),
        ({"multiples": (1, 2, 3)}, "multiples=.*divisors of the last"),
        ({"extra_share": 0.0}, "extra_share=0.0: it must be positive"),
        ({"share": 1.0}, "share=1.0: it must be above 0 and below 1"),
        ({"methods": ("linear",)}, "methods=.*'none' among them"),
        ({"tune_multiple": 3}, "training.batch_size=8: it must be a multiple of tune_multiple=3"),
        ({"tune_multiple": 8}, "share=0.5: it must be such that the fine-tune's 1 rows hold both"),
        ({"extra_share": 1e-4}, "extra_share=0.0001: it must be at least .*, one step"),
    ],
)
def test_settings_that_cannot_be_used(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stages(ExtensionConfig(**changes))


def test_a_scaling_that_does_not_fit_the_model_is_refused_when_it_is_planned() -> None:
    with pytest.raises(ValueError, match="original_length=1: it must be the length trained on"):
        scaled_models(MODEL, ExtensionConfig(), 1, 300)
    with pytest.raises(ValueError, match="heads=3: it must be a divisor of dim=16"):
        ExtensionModel(dim=16, heads=3)
