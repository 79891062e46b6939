"""What the images show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from toolkit.training.router_board import draw_load, draw_pairs


class Writer:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.images: dict[str, np.ndarray] = {}

    def add_image(self, tag: str, image: np.ndarray, step: int) -> None:
        self.images[tag] = image


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
