"""Arms: as much active compute as the dense model, whatever the routing, and only what an arm says differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toolkit
from toolkit.compute import Cost, cost
from toolkit.models import Decoder, FeedForwardConfig, MoEConfig
from toolkit.scaling import PlannedRun, plan_isoflop
from toolkit.scaling.cli import read_study
from toolkit.scaling.plan import TOLERANCE
from toolkit.scaling.routing.arms import Arm, RoutingArms
from toolkit.training.step import training_loss

PRESETS = Path(toolkit.__file__).parents[1] / "experiments" / "presets" / "routing"
NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))


def shape_of(preset: str) -> RoutingArms:
    shape = read_study(["--preset", preset], PRESETS, "", RoutingArms)[0].shape
    assert isinstance(shape, RoutingArms)
    return shape


DEMO = shape_of("demo")
BY_NAME = {arm.name: arm for arm in DEMO.arms}


def plan(preset: str, *, seeds: int = 1) -> list[PlannedRun]:
    study, _ = read_study(["--preset", preset, "--grid.seeds", str(seeds)], PRESETS, "", RoutingArms)
    return plan_isoflop(study.grid, study.shape, 256, study.training)


def feed_forward_flops(of: Cost) -> float:
    """Of all feed-forwards, routed, shared or dense; the router's own are not the experts'."""
    return sum(part.needed for part in of.work if part.kind in ("feed_forward", "experts", "shared_experts"))


@pytest.mark.parametrize("name", [name for name, arm in BY_NAME.items() if arm.depth_capacity is None])
def test_an_arm_s_experts_compute_as_much_for_a_token_as_the_dense_feed_forward(name: str) -> None:
    arm, dense = (cost(DEMO.decoder(family, 24, 256), 128) for family in (name, "dense"))
    assert feed_forward_flops(arm) == feed_forward_flops(dense)
    kinds = ("scores", "attention", "head")
    assert [part for part in arm.work if part.kind in kinds] == [part for part in dense.work if part.kind in kinds]


@pytest.mark.parametrize("name", [arm.name for arm in DEMO.arms if arm.num_experts])
def test_the_demo_s_sparse_arms_have_as_many_expert_parameters(name: str) -> None:
    arm, default = (cost(DEMO.decoder(family, 24, 256), 128).parameters for family in (name, "aux"))
    experts = ("experts", "shared_experts")
    assert sum(arm.get(kind, 0) for kind in experts) == sum(default.get(kind, 0) for kind in experts)


def test_depths_compute_one_token_in_eight_of_the_second_layer() -> None:
    depths, dense = (cost(DEMO.decoder(family, 24, 256), 128) for family in ("depths", "dense"))
    assert feed_forward_flops(depths) == feed_forward_flops(dense) * (1 + 1 / 8) / 2
    four = replace(DEMO, layers=4).decoder("depths", 24, 256)
    assert [block.depth_capacity for block in four.blocks] == [None, 0.125, None, 0.125]


@pytest.mark.parametrize(
    ("arm", "hidden_dim"),
    [
        (Arm("a"), 60),
        (Arm("a", top_k=3, shared_experts=1), 30),
        (Arm("a", top_k=3, identity_experts=2, zero_experts=1, constant_experts=1), 60),  # 3 of 12, 8 of them real
        (Arm("a", num_experts=16, top_k=7), 17),  # 120 / 7, rounded
        (Arm("a", experts_per_token=0.5), 240),
        (Arm("a", num_experts=256, top_k=250), 1),
    ],
)
def test_width_is_the_dense_one_shared_by_the_experts_that_compute(arm: Arm, hidden_dim: int) -> None:
    layer = arm.feed_forward(120)
    assert isinstance(layer, MoEConfig)
    assert layer.hidden_dim == hidden_dim


def test_an_arm_without_experts_is_dense() -> None:
    assert Arm("a", num_experts=0).feed_forward(120) == FeedForwardConfig(120)


def test_every_setting_of_an_arm_reaches_its_layer() -> None:
    told: dict[str, Any] = {
        "router": "TopKRouter(score='sigmoid')", "num_experts": 6, "top_k": 3, "shared_experts": 2, "shared_gate": True,
        "capacity_factor": 1.5, "drop_policy": "position", "adjust": ("TokenRounding(8)",), "identity_experts": 1,
        "zero_experts": 2, "constant_experts": 3, "causal": False,
    }  # fmt: skip
    layer = Arm("a", **told).feed_forward(120)
    assert {name: getattr(layer, name) for name in told} == told


@pytest.mark.parametrize("preset", NAMES)
def test_every_run_of_a_preset_spends_its_budget_within_1_percent(preset: str) -> None:
    runs = plan(preset)
    assert {run.family for run in runs} == set(shape_of(preset).families)
    for run in runs:
        assert abs(run.flops["exact"] / run.budget - 1) <= TOLERANCE
        assert run.flops["exact"] == run.tokens * cost(run.model, run.training.context).training_flops["exact"]


@pytest.mark.parametrize("name", DEMO.families)
def test_every_arm_of_the_demo_trains_and_is_evaluated(name: str) -> None:
    torch.manual_seed(0)
    decoder = Decoder(DEMO.decoder(name, 24, 256))
    loss, _ = training_loss(decoder, torch.randint(256, (2, 129)))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    with torch.no_grad():
        assert torch.isfinite(decoder.eval()(torch.randint(256, (2, 128))).logits).all()


@pytest.mark.parametrize("name", [name for name in DEMO.families if name != "random"])
def test_only_the_arms_said_to_be_not_causal_read_the_future(name: str) -> None:
    torch.manual_seed(0)
    decoder = Decoder(DEMO.decoder(name, 24, 256))
    training_loss(decoder, torch.randint(256, (4, 129)))[0].backward()  # thresholds leave their start
    decoder.eval()
    tokens = torch.randint(256, (1, 128))
    changed = tokens.clone()
    changed[:, 64:] = torch.randint(256, (1, 64))
    with torch.no_grad():
        before, after = (decoder(ids).logits[:, :64] for ids in (tokens, changed))
    assert torch.allclose(before, after, atol=1e-5) == (name not in DEMO.not_causal)


def test_a_router_that_reads_the_future_must_be_said_to() -> None:
    leaking = replace(BY_NAME["soft"], causal=True)
    with pytest.raises(ValueError, match="causal"):
        cost(RoutingArms((leaking,)).decoder("soft", 24, 256), 128)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "dense"}, "name='dense': it must be letters"),
        ({"name": "a/b"}, "name='a/b': it must be letters"),
        ({"name": ""}, "name='': it must be letters"),
        ({"num_experts": -1}, "num_experts=-1: it must be 0"),
        ({"top_k": 0}, "top_k=0: it must be positive"),
        ({"experts_per_token": 0.0}, "experts_per_token=0.0: it must be positive, or None"),
    ],
)
def test_a_bad_arm_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arm(**{"name": "a", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": (Arm("a"), Arm("b"), Arm("a"))}, r"arms=\['a'\]: it must be named each by a name of its own"),
        ({"baseline": "c"}, "baseline='c': it must be one of dense, a"),
        ({"layers": 0}, "layers=0: it must be positive"),
    ],
)
def test_bad_arms_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoutingArms(**{"arms": (Arm("a"),), **settings})


def test_an_unknown_family_or_width_is_refused() -> None:
    with pytest.raises(ValueError, match="families='b': it must be one of dense, a"):
        RoutingArms((Arm("a"),)).decoder("b", 24, 256)
    with pytest.raises(ValueError, match="dims=25: it must be a multiple of 2"):
        RoutingArms((Arm("a"),)).decoder("a", 25, 256)
