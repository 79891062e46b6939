"""Arms of attention: a larger model of as many FLOPs a token, an equal one of fewer, and only what is said differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toolkit
from toolkit.attention import Causal, GlobalTokens, Pattern, SlidingWindow
from toolkit.attention.selection import parse_sparsity
from toolkit.compute import cost
from toolkit.models import Decoder, DecoderConfig, FeedForwardConfig
from toolkit.scaling import plan_isoflop
from toolkit.scaling.attention.arms import FULL, AttentionArm, AttentionArms
from toolkit.scaling.attention.contexts import ContextStudies, read_context_studies
from toolkit.scaling.plan import TOLERANCE
from toolkit.training.step import training_loss

PRESETS = Path(toolkit.__file__).parents[1] / "experiments" / "presets" / "attention"
NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
VOCABULARY = 256


def studies_of(preset: str) -> ContextStudies:
    return read_context_studies(["--preset", preset], PRESETS, "", AttentionArms, Path("runs"))[0]


def shapes_of(preset: str) -> dict[int, AttentionArms]:
    shapes = {}
    for context, study in studies_of(preset).by_context.items():
        assert isinstance(study.shape, AttentionArms)
        shapes[context] = study.shape
    return shapes


DEMO = shapes_of("demo")
CELLS = [(context, family) for context, shape in DEMO.items() for family in shape.families]


def flops(model: DecoderConfig, context: int) -> float:
    return cost(model, context).training_flops["exact"]


@pytest.mark.parametrize(("context", "family"), [cell for cell in CELLS if cell[1].endswith("-size")])
def test_a_larger_model_s_token_costs_what_the_full_one_s_does(context: int, family: str) -> None:
    sized, full = (DEMO[context].decoder(name, 24, VOCABULARY) for name in (family, FULL))
    assert abs(flops(sized, context) / flops(full, context) - 1) <= 0.01
    equal = DEMO[context].decoder(family.replace("-size", "-tokens"), 24, VOCABULARY)
    grew = cost(sized, context).total_parameters > cost(equal, context).total_parameters
    assert grew == (flops(equal, context) < flops(full, context))


@pytest.mark.parametrize(("context", "family"), [cell for cell in CELLS if cell[1].endswith("-tokens")])
def test_a_model_for_more_tokens_differs_from_the_full_one_in_its_patterns_alone(context: int, family: str) -> None:
    arm, full = (DEMO[context].decoder(name, 24, VOCABULARY) for name in (family, FULL))
    plain = [replace(block, attention=replace(block.attention, pattern="Causal()")) for block in arm.blocks]
    assert replace(arm, blocks=tuple(plain)) == full
    sized = DEMO[context].decoder(family.replace("-tokens", "-size"), 24, VOCABULARY)
    assert [block.attention.pattern for block in sized.blocks] == [block.attention.pattern for block in arm.blocks]


def test_five_layers_of_six_are_local_and_the_last_is_full() -> None:
    model = DEMO[512].decoder("interleaved-tokens", 24, VOCABULARY)
    local, full = Causal() & SlidingWindow(32), Causal()
    assert [parse_sparsity(block.attention.pattern) for block in model.blocks] == [local] * 5 + [full]


def test_patterns_go_round_where_there_are_more_layers() -> None:
    arm = AttentionArm("a", ("Causal() & SlidingWindow(4)", "Causal()"))
    model = AttentionArms((arm,), layers=5, head_dim=8).decoder("a-tokens", 16, VOCABULARY)
    assert [block.attention.pattern for block in model.blocks] == [arm.patterns[layer % 2] for layer in range(5)]


def test_globals_are_the_last_of_each_stretch_and_pass_on_what_is_before_them() -> None:
    arm = AttentionArm("a", ("Causal() & (SlidingWindow(2) | {globals})",), global_every=4)
    pattern = parse_sparsity(arm.pattern(0, 12))
    assert isinstance(pattern, Pattern)
    assert pattern == Causal() & (SlidingWindow(2) | GlobalTokens(positions=[3, 7, 11]))
    sees = pattern.mask(12, 12)[..., :, :].reshape(12, 12)
    later, earlier = 10, 1
    assert not sees[later, earlier]
    assert sees[later, 3]
    assert sees[3, earlier]  # two layers carry it


@pytest.mark.parametrize("preset", NAMES)
def test_every_run_of_a_preset_spends_its_budget_within_1_percent(preset: str) -> None:
    for context, study in studies_of(preset).by_context.items():
        shape, grid = study.shape, replace(study.grid, seeds=1)
        runs = plan_isoflop(grid, shape, study.corpus.vocab_size, study.training)
        assert {run.family for run in runs} == set(shape.families)
        for run in runs:
            assert run.training.context == context
            assert abs(run.flops["exact"] / run.budget - 1) <= TOLERANCE
            assert run.training.learning_rate == grid.recipe.learning_rate * grid.recipe.base_dim / run.model.dim


@pytest.mark.parametrize("preset", NAMES)
def test_more_tokens_or_a_larger_model_is_what_a_cheaper_arm_gets(preset: str) -> None:
    context, study = max(studies_of(preset).by_context.items())
    runs = plan_isoflop(replace(study.grid, seeds=1), study.shape, study.corpus.vocab_size, study.training)
    full = next(run for run in runs if run.family == FULL)
    for run in (run for run in runs if run.budget == full.budget and run.family != FULL):
        spent_on_tokens = run.family.endswith("-tokens")
        assert run.tokens > full.tokens * 1.1 if spent_on_tokens else abs(run.tokens / full.tokens - 1) <= 0.02
        same_size = (
            run.model.dim == full.model.dim and run.model.blocks[0].feed_forward == full.model.blocks[0].feed_forward
        )
        assert same_size == spent_on_tokens, (context, run.family)


@pytest.mark.parametrize("name", DEMO[128].families)
def test_every_arm_of_the_demo_trains_and_reads_no_later_token(name: str) -> None:
    torch.manual_seed(0)
    decoder = Decoder(DEMO[128].decoder(name, 24, VOCABULARY))
    loss, _ = training_loss(decoder, torch.randint(VOCABULARY, (2, 129)))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    tokens = torch.randint(VOCABULARY, (1, 128))
    changed = tokens.clone()
    changed[:, 64:] = torch.randint(VOCABULARY, (1, 64))
    with torch.no_grad():
        before, after = (decoder.eval()(ids).logits[:, :64] for ids in (tokens, changed))
    assert torch.allclose(before, after, atol=1e-5)


def test_an_arm_that_costs_more_gets_a_smaller_model() -> None:
    dear = AttentionArm("dear", ("NativeSparse(block=16, top_k=8, compress_block=16, stride=8, window=128)",))
    shape = AttentionArms((dear,), context=128, layers=2, head_dim=8)
    full, sized, equal = (shape.decoder(name, 24, VOCABULARY) for name in (FULL, "dear-size", "dear-tokens"))
    assert flops(equal, 128) > flops(full, 128)
    layers = sized.blocks[0].feed_forward, full.blocks[0].feed_forward
    assert all(isinstance(layer, FeedForwardConfig) for layer in layers)
    assert layers[0].hidden_dim * sized.dim < layers[1].hidden_dim * full.dim


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "full"}, "name='full': it must be letters"),
        ({"name": "a/b"}, "name='a/b': it must be letters"),
        ({"patterns": ()}, r"patterns=\(\): it must be at least one"),
        ({"global_every": 4}, "global_every=4: it must be None, as no pattern has {globals}"),
        ({"patterns": ("Causal() & {globals}",)}, "global_every=None: it must be a positive distance"),
        ({"patterns": ("Causal() & {globals}",), "global_every": 0}, "global_every=0: it must be a positive"),
    ],
)
def test_a_bad_arm_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionArm(**{"name": "a", "patterns": ("Causal()",), **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": (AttentionArm("a", ("Causal()",)),) * 2}, "arms=.*named each by a name of its own"),
        ({"layers": 0}, "layers=0: it must be positive"),
        ({"context": 0}, "context=0: it must be positive"),
    ],
)
def test_a_bad_shape_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionArms(**{"arms": (AttentionArm("a", ("Causal()",)),), **settings})


@pytest.mark.parametrize(
    ("family", "dim", "message"),
    [
        ("a", 24, "families='a': it must be one of full, a-tokens, a-size"),
        ("a-size", 20, "dims=20: it must be a multiple of head_dim=8"),
        ("b-size", 24, "pattern=.*Slidin"),
    ],
)
def test_a_family_width_or_pattern_that_makes_no_decoder_is_refused(family: str, dim: int, message: str) -> None:
    arms = AttentionArm("a", ("Causal()",)), AttentionArm("b", ("Causal() & Sliding(4)",))
    with pytest.raises(ValueError, match=message):
        AttentionArms(arms[: 1 + family.startswith("b")], head_dim=8).decoder(family, dim, VOCABULARY)
