"""The coordinate check: how much a few steps of Adam change each activation, at one width and at eight times that.

Yang et al. 2022 (arXiv 2203.03466, appendix D.1) test an implementation of muP so: a wide model's activations must
change by as much as a narrow one's. Of a handful of tokens, since the updates that they have in common, which muP is
about, outweigh those that they do not only where the width exceeds the number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from toolkit.layers import MoE
from toolkit.models import AttentionConfig, BlockConfig, Decoder, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.training import TrainingConfig, build_optimizer, training_loss

WIDTHS = (32, 64, 128, 256)
BASE, VOCAB, LAYERS, STEPS, RATE, SEEDS = 32, 8, 2, 5, 0.01, 6

RULES: dict[str, tuple[int | None, Callable[[int], float]]] = {
    "muP": (BASE, lambda dim: RATE),
    "one rate": (None, lambda dim: RATE),
    "inverse width": (None, lambda dim: RATE * BASE / dim),
}
"""The mup_base_dim and the learning rate of a width."""

FAMILIES = ("dense", "moe")


def decoder(family: str, dim: int, mup_base_dim: int | None) -> Decoder:
    feed_forward = FeedForwardConfig(2 * dim) if family == "dense" else MoEConfig(dim // 2, num_experts=4, top_k=2)
    block = BlockConfig(AttentionConfig(heads=dim // 16), feed_forward)
    return Decoder(DecoderConfig(VOCAB, dim, (block,) * LAYERS, mup_base_dim=mup_base_dim))


def activations(model: Decoder, tokens: Tensor) -> dict[str, Tensor]:
    """What each part gives, by name; of routers also what they read."""
    seen: dict[str, Tensor] = {}
    parts = {"embedding": model.embedding} | {f"layer {n}": block for n, block in enumerate(model.blocks)}
    routers = {path: moe.router for path, moe in model.named_modules() if isinstance(moe, MoE)}
    hooks = [
        part.register_forward_hook(lambda module, inputs, out, name=name: seen.update({name: out}))
        for name, part in parts.items()
    ]
    hooks += [
        router.register_forward_hook(
            lambda module, inputs, out, path=path: seen.update({path: inputs[0], f"router of {path}": out.logits})
        )
        for path, router in routers.items()
    ]
    with torch.no_grad():
        seen["logits"] = model(tokens).logits
    for hook in hooks:
        hook.remove()
    return seen


def router_weights(model: Decoder) -> dict[str, Tensor]:
    return {
        path: moe.router.get_parameter("weight").detach().clone()
        for path, moe in model.named_modules()
        if isinstance(moe, MoE)
    }


def size(x: Tensor) -> float:
    return float(x.abs().mean())


def trained(family: str, dim: int, rule: str, seed: int) -> dict[str, float]:
    """Mean |activation| at the start, and |change| after a few steps on one batch.

    A router's change is what its update makes of its new input, (W - W_0) x: what its start W_0 makes of the change of
    x falls with the width as its logits at the start do, and outweighs the rest at these widths.
    """
    base, rate = RULES[rule]
    torch.manual_seed(seed)
    model, windows = decoder(family, dim, base), torch.randint(VOCAB, (1, 5))
    optimizer = build_optimizer(model, TrainingConfig(steps=STEPS, learning_rate=rate(dim), weight_decay=0.0))
    before, weights = activations(model, windows[:, :-1]), router_weights(model)
    for _ in range(STEPS):
        optimizer.zero_grad()
        training_loss(model, windows)[0].backward()
        optimizer.step()
    after = activations(model, windows[:, :-1])
    found = {f"start of {name}": size(x) for name, x in before.items()}
    found |= {name: size(after[name] - x) for name, x in before.items()}
    updates = {path: weight - weights[path] for path, weight in router_weights(model).items()}
    return found | {f"router of {path}": size(after[path] @ update.T) for path, update in updates.items()}


@cache
def slopes(family: str, rule: str) -> dict[str, float]:
    """The exponent with which each figure grows with the width, of the mean over seeds."""
    tables = []
    for dim in WIDTHS:
        runs = [trained(family, dim, rule, seed) for seed in range(SEEDS)]
        tables.append({name: np.mean([run[name] for run in runs]) for name in runs[0]})
    logarithms = {name: np.log([table[name] for table in tables]) for name in tables[0]}
    return {name: float(np.polyfit(np.log(WIDTHS), values, 1)[0]) for name, values in logarithms.items()}


def of_layers(family: str, rule: str) -> list[float]:
    return [slopes(family, rule)[f"layer {n}"] for n in range(LAYERS)]


def of_routers(rule: str, when: str = "") -> list[float]:
    return [slope for name, slope in slopes("moe", rule).items() if name.startswith(f"{when}router of")]


@pytest.mark.parametrize("family", FAMILIES)
def test_under_mup_every_activation_changes_as_much_at_any_width(family: str) -> None:
    found = slopes(family, "muP")
    for name in ("embedding", "layer 0", "layer 1"):
        assert abs(found[name]) < 0.12, name
    assert abs(found["logits"]) < 0.25  # what falls with the width at the start, see below, is still in it


def test_under_mup_routers_learn_as_much_at_any_width() -> None:
    assert len(of_routers("muP")) == LAYERS
    assert max(map(abs, of_routers("muP"))) < 0.35


@pytest.mark.parametrize("family", FAMILIES)
def test_with_one_rate_what_a_layer_does_changes_more_the_wider_it_is(family: str) -> None:
    assert min(of_layers(family, "one rate")) > 0.8
    assert min(of_routers("one rate")) > 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_rate_over_the_width_layers_change_alike_but_the_embedding_stands_still(family: str) -> None:
    assert max(map(abs, of_layers(family, "inverse width"))) < 0.15
    assert slopes(family, "inverse width")["embedding"] < -0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_under_mup_logits_start_smaller_the_wider_and_the_stream_does_not(family: str) -> None:
    found = slopes(family, "muP")
    for name in ("embedding", "layer 0", "layer 1"):
        assert abs(found[f"start of {name}"]) < 0.1, name
    # dim ** -0.5, and what a tied head has in common with the embedding that it reads again
    assert -0.6 < found["start of logits"] < -0.25
    assert abs(slopes(family, "one rate")["start of logits"]) < 0.15


def test_under_mup_router_logits_start_as_one_over_the_root_of_the_width() -> None:
    assert of_routers("muP", "start of ") == pytest.approx([-0.5] * LAYERS, abs=0.15)
    assert of_routers("one rate", "start of ") == pytest.approx([0.0] * LAYERS, abs=0.15)
