"""Rows of routed experts: what adjustments leave of a router's, and the work of either phase."""

from __future__ import annotations

import pytest

from toolkit.layers import Experts
from toolkit.layers.routed_rows import RoutedRows
from toolkit.routing import BiasBalancer, Capacity, ExpertChoiceRouter, GShardRouter, TokenRounding, TopKRouter

DIM, EXPERTS = 8, 4


def rows(router: object, *adjust: object, num_experts: int = EXPERTS, choices: int = EXPERTS) -> RoutedRows:
    return RoutedRows.of(router, num_experts, choices, adjust, 10)


def test_capacity_takes_off_what_it_is_sure_to_drop() -> None:
    router = TopKRouter(DIM, EXPERTS, 2)
    assert rows(router) == RoutedRows(20, 20, "exact")
    assert rows(router, Capacity(1.25)) == RoutedRows(20, 20, "bound")  # 4 experts of 7 have room for 28
    assert rows(router, Capacity(0.5)) == RoutedRows(12, 20, "bound")  # ceil(0.5 * 20 / 4) = 3 each
    assert rows(router, Capacity(0.5, min_capacity=4)) == RoutedRows(16, 20, "bound")
    assert rows(router, Capacity(0.5, evaluation_factor=0.2)) == RoutedRows(12, 4, "bound")
    assert rows(router, Capacity(0.5), Capacity(0.2)) == RoutedRows(4, 20, "bound")


def test_the_least_certain_part_decides() -> None:
    class Unknown:
        pass

    router = GShardRouter(DIM, EXPERTS)
    assert rows(GShardRouter(DIM, EXPERTS, second="always")).certainty == "exact"
    assert rows(router).certainty == "bound"
    assert rows(router, TokenRounding(4), Capacity(1.0)).certainty == "balanced"
    assert rows(router, Unknown()).certainty == "balanced"
    assert rows(router, num_experts=3).certainty == "balanced"


@pytest.mark.parametrize(
    ("target", "share"),
    [
        (None, 3 / 4),
        ([0.2, 0.2, 0.2, 0], 0.6),  # the last, which nothing steers, takes the rest
        ([0.2, 0, 0, 0.2], 0.2 + 0.6),  # which those with 0 share
        ([0.2, 0.2, 0.2, 0.2], 3 / 4),  # nobody is left for it
        ([0.3, 0.3, 0.2, 0.2], 0.8),
    ],
)
def test_experts_without_computation_take_what_the_balancer_leaves_them(
    target: list[float] | None, share: float
) -> None:
    router = TopKRouter(DIM, EXPERTS, 2, balancer=BiasBalancer(EXPERTS, target=target))
    assert rows(router, num_experts=3) == RoutedRows(round(20 * share), round(20 * share), "balanced")


def test_experts_that_choose_have_equal_loads_whatever_they_compute() -> None:
    router = ExpertChoiceRouter(DIM, EXPERTS, 1.0)
    assert rows(router) == RoutedRows(12, 12, "exact")  # ceil(10 / 4) = 3 each
    assert rows(router, num_experts=3) == RoutedRows(9, 9, "exact")


def test_work_is_apart_where_training_and_evaluation_differ() -> None:
    experts = Experts(DIM, 6, EXPERTS)
    for training, evaluation in ((5, 5), (3, 7), (7, 3)):
        parts = RoutedRows(training, evaluation, "bound").work(experts)
        assert {part.certainty for part in parts} == {"bound"}
        for phase, expected in (("training", training), ("evaluation", evaluation)):
            found = sum(part.needed for part in parts if part.phase in ("both", phase))
            assert found == expected * 3 * 6 * DIM
