"""What the images show."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.layers import DepthStats, MoE
from toolkit.routing import RoutingStats
from toolkit.training.router_board import bias_range, depth_figures, draw_load, draw_pairs, figures, write_mean


class Writer:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.images: dict[str, np.ndarray] = {}
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))

    def add_image(self, tag: str, image: np.ndarray, step: int) -> None:
        self.images[tag] = image


TAGS = {"entropy": "token_entropy", "dead": "dead_experts", "dropped": "dropped_share"}
"""Where a curve's name says more than the statistic's."""
BY_EXPERT = ("load", "importance")


def stats_and_layer() -> tuple[RoutingStats, MoE]:
    moe = MoE(8, 12, 4, 2)
    moe(torch.randn(9, 8))
    return moe.stats, moe


@pytest.mark.parametrize("name", [field.name for field in fields(RoutingStats)])
def test_every_sum_of_the_statistics_shows_in_a_curve(name: str) -> None:
    stats, moe = stats_and_layer()
    other = replace(stats, **{name: getattr(stats, name) + torch.rand(getattr(stats, name).shape) + 0.1})
    assert figures(other, bias_range(moe)) != figures(stats, bias_range(moe))


PROPERTIES = [name for name, member in vars(RoutingStats).items() if isinstance(member, property)]


@pytest.mark.parametrize("name", [*PROPERTIES, "tokens", "non_finite", "logit_max"])
def test_every_statistic_has_its_curve(name: str) -> None:
    stats, moe = stats_and_layer()
    shown, value = figures(stats, bias_range(moe)), getattr(stats, name)
    if name in BY_EXPERT:
        assert [shown[f"{name}/expert{expert}"] for expert in range(4)] == value.tolist()
    else:
        assert shown[TAGS.get(name, name)] == float(value)


@pytest.mark.parametrize("suffix", ["", "_validation"])
def test_every_share_of_a_layer_in_depth_has_its_curve(suffix: str) -> None:
    stats = DepthStats(*torch.tensor([8.0, 4.0, 2.0, 6.0]).double())
    shown = {f"depth_{name}{suffix}": value for name, value in (("selected", 0.5), ("predicted", 0.25))}
    assert depth_figures(stats, suffix) == {**shown, f"depth_accuracy{suffix}": 0.75}


def test_the_layers_mean_has_a_curve_of_its_own_where_there_are_layers() -> None:
    writer: Any = Writer()
    write_mean(writer, "max_violation", [0.5, 1.0, 3.0], 7)
    write_mean(writer, "max_violation", [], 8)
    assert writer.scalars == [("router/max_violation", 1.5, 7)]


def test_load_is_grey_at_balance_and_white_at_twice_its_share() -> None:
    writer: Any = Writer()
    draw_load(writer, "layer0", np.array([[0.25] * 4, [0.5, 0.5, 0, 0], [1.0, 0, 0, 0]]), 1)
    image = writer.images["router/layer0/load_heat_map"][0]
    assert image.shape == (8 * 4, 4 * 3)
    assert image[::8, ::4].tolist() == [[0.5, 1.0, 1.0], [0.5, 1.0, 0.0], [0.5, 0.0, 0.0], [0.5, 0.0, 0.0]]


def test_pairs_are_shares_of_the_row_s_expert() -> None:
    writer: Any = Writer()
    draw_pairs(writer, "layer0", torch.tensor([[4.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), 1)
    image = writer.images["router/layer0/co_selection"][0]
    assert image[::8, ::8].tolist() == [[1.0, 0.25, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(("experts", "size"), [(4, 8), (64, 8), (256, 2), (1024, 1)])
def test_images_of_many_experts_stay_small(experts: int, size: int) -> None:
    writer: Any = Writer()
    draw_pairs(writer, "layer0", torch.eye(experts), 1)
    assert writer.images["router/layer0/co_selection"].shape == (1, size * experts, size * experts)
