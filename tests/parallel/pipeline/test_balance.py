"""Stages are as even as they can be."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from pipeline_work import KINDS, LENGTH, decoder

from toolkit.compute import cost
from toolkit.models import Decoder
from toolkit.parallel.pipeline import layer_costs, split_layers


def all_splits(layers: int, stages: int) -> list[list[range]]:
    cuts = combinations(range(1, layers), stages - 1)
    return [[range(*ends) for ends in pairwise((0, *cut, layers))] for cut in cuts]


def stage_costs(split: list[range], costs: list[int], head: int) -> list[int]:
    found = [sum(costs[layer] for layer in layers) for layers in split]
    return [*found[:-1], found[-1] + head]


@pytest.mark.parametrize("seed", range(30))
def test_no_other_split_has_a_faster_slowest_stage_or_is_more_even_with_the_same(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    layers = int(torch.randint(1, 9, (1,), generator=draw))
    stages = int(torch.randint(1, layers + 1, (1,), generator=draw))
    costs = torch.randint(1, 20, (layers,), generator=draw).tolist()
    head = int(torch.randint(0, 40, (1,), generator=draw))
    found = split_layers(costs, stages, head)
    splits = all_splits(layers, stages)
    assert found in splits

    def rank(split: list[range]) -> tuple[int, int]:
        each = stage_costs(split, costs, head)
        return max(each), sum(value**2 for value in each)

    assert rank(found) == min(map(rank, splits))


def test_a_heavy_head_takes_layers_from_the_last_stage() -> None:
    assert [len(layers) for layers in split_layers([1] * 8, 4)] == [2, 2, 2, 2]
    assert [len(layers) for layers in split_layers([1] * 8, 4, head=2)] == [2, 2, 3, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_costs_add_up_to_what_a_training_step_of_the_whole_is_counted_to_compute(kind: str) -> None:
    layers, head = layer_costs(Decoder(decoder(kind)), LENGTH)
    counted = cost(decoder(kind), LENGTH).training_flops["hardware"]
    assert 2 * (sum(layers) + head) / LENGTH == pytest.approx(counted, rel=1e-12)
    assert min(layers) > 0
    assert head == 3 * LENGTH * 16 * 32


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="stages=5: it must be at most 4, the layers"):
        split_layers([1] * 4, 5)
    with pytest.raises(ValueError, match="stages"):
        split_layers([1] * 4, 0)
    with pytest.raises(ValueError, match="length"):
        layer_costs(Decoder(decoder("dense")), 0)
