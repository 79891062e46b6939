"""The frontier against a brute-force convex hull and against convex laws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from toolkit.scaling.hull import Frontier


def frontier(cost: np.ndarray, loss: np.ndarray, ends: tuple[int, ...] = (0, -1)) -> Frontier:
    """One draw; ``ends`` are the indices of the budgets' best points."""
    at = list(ends)
    return Frontier(cost, loss[None], cost[None, at], loss[None, at])


def lower_hull(cost: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices of the decreasing part of the lower hull, by scipy: add far corners above and right."""
    far = np.array([[cost.min(), 1e3], [1e3, 1e3], [1e3, loss.min()]])
    points = np.concatenate([np.stack([cost, loss], axis=1), far])
    vertices = points[ConvexHull(points).vertices]
    vertices = vertices[(vertices < 999).all(axis=1)]
    vertices = vertices[np.argsort(vertices[:, 0])]
    return vertices[:, 0], vertices[:, 1]


@pytest.mark.parametrize("seed", range(20))
def test_is_the_lower_convex_hull(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost, loss = rng.uniform(0, 5, 12), rng.uniform(0, 3, 12)
    x, y = lower_hull(cost, loss)
    mine = frontier(cost, loss, (int(cost.argmin()), int(loss.argmin())))
    for at in np.linspace(cost.min(), x[-1], 30):
        assert mine.loss_reached(np.array([at]))[0] == pytest.approx(np.interp(at, x, y))
    for target in np.linspace(loss.min() + 1e-6, y[0] - 1e-6, 30 if len(x) > 1 else 0):
        reached, outside = mine.cost_to_reach(np.array([target]))
        assert reached[0] == pytest.approx(np.interp(target, y[::-1], x[::-1]))
        assert not outside[0]


def test_inverse_of_loss_reached() -> None:
    cost = np.linspace(0, 4, 5)
    mine = frontier(cost, np.exp(-cost))
    at = np.linspace(0, 4, 41)
    for value in at:
        loss = mine.loss_reached(np.array([value]))
        assert mine.cost_to_reach(loss)[0][0] == pytest.approx(value)


def test_chords_lie_above_a_convex_law() -> None:
    """The frontier never promises less loss than the law it was sampled from."""
    cost = np.array([0.0, 1.2, 2.4])

    def law(x: np.ndarray) -> np.ndarray:
        return np.log(1.0 + 1.5 * np.exp(-0.3 * x))

    mine = frontier(cost, law(cost), (0, 1, 2))
    at = np.linspace(0, 2.4, 25)
    reached = np.array([mine.loss_reached(np.array([value]))[0] for value in at])
    assert (reached >= law(at) - 1e-12).all()
    for value in at:
        found = mine.cost_to_reach(np.array([law(value)]))[0][0]
        assert value - 1e-9 <= found <= value + 0.03  # 3% of compute


def test_power_law_is_exact_inside_and_outside() -> None:
    cost = np.array([0.0, 1.0, 2.5])
    mine = frontier(cost, 3 - 0.2 * cost, (0, 1, 2))
    for value, beyond in ((-2.0, True), (0.0, False), (0.7, False), (2.5, False), (4.0, True)):
        reached, outside = mine.cost_to_reach(np.array([3 - 0.2 * value]))
        assert reached[0] == pytest.approx(value)
        assert outside[0] == beyond


def test_ends_that_do_not_fall_give_no_finite_cost() -> None:
    mine = frontier(np.array([0.0, 1.0]), np.array([2.0, 2.1]))
    assert mine.cost_to_reach(np.array([1.9]))[0][0] == np.inf
    assert mine.cost_to_reach(np.array([2.2]))[0][0] == -np.inf
    assert mine.cost_to_reach(np.array([2.0]))[0][0] == 0.0


@pytest.mark.parametrize("better", [1.0, 0.7])
def test_a_larger_budget_that_is_better_in_no_more_time_has_no_slope_to_go_on_by(better: float) -> None:
    mine = frontier(np.array([1.0, better]), np.array([2.0, 1.8]))
    reached, outside = mine.cost_to_reach(np.array([1.7]))
    assert np.isnan(reached[0])
    assert not outside[0]
    assert mine.cost_to_reach(np.array([1.8]))[0][0] == pytest.approx(better)


def test_one_budget_has_no_slope() -> None:
    one = Frontier(np.array([0.0, 0.5]), np.array([[2.0, 1.9]]), np.array([[0.5]]), np.array([[1.9]]))
    reached, outside = one.cost_to_reach(np.array([1.95]))
    assert np.isnan(reached[0])
    assert not outside[0]


def test_points_of_equal_cost() -> None:
    """Two points straight above each other: the lower one counts."""
    mine = frontier(np.array([0.0, 0.0, 1.0]), np.array([3.0, 2.0, 1.0]), (1, 2))
    assert mine.cost_to_reach(np.array([2.0]))[0][0] == 0.0
    assert mine.cost_to_reach(np.array([1.5]))[0][0] == pytest.approx(0.5)
    assert mine.loss_reached(np.array([0.0]))[0] == 2.0


def test_draws_do_not_mix() -> None:
    rng = np.random.default_rng(0)
    cost, loss = np.sort(rng.uniform(0, 5, 6)), rng.uniform(1, 3, (40, 6))
    many = Frontier(cost, loss, np.broadcast_to(cost[[0, 5]], (40, 2)), loss[:, [0, 5]])
    target = rng.uniform(0.5, 3.5, 40)
    reached, outside = many.cost_to_reach(target)
    for draw in range(40):
        one = frontier(cost, loss[draw])
        alone, beyond = one.cost_to_reach(target[draw : draw + 1])
        assert (reached[draw], outside[draw]) == (alone[0], beyond[0])


def test_nan_draw_has_no_answer() -> None:
    loss = np.array([[2.0, 1.0], [np.nan, np.nan]])
    cost = np.array([0.0, 1.0])
    mine = Frontier(cost, loss, np.broadcast_to(cost, (2, 2)), loss)
    reached, _ = mine.cost_to_reach(np.array([1.5, 1.5]))
    assert reached[0] == pytest.approx(0.5)
    assert np.isnan(reached[1])


def test_less_than_every_cost_reaches_nothing() -> None:
    assert frontier(np.array([1.0, 2.0]), np.array([2.0, 1.0])).loss_reached(np.array([0.5]))[0] == np.inf
