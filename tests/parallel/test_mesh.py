"""Who is whose neighbour, who reads which sequences, and who shares experts: against plain counting."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from gloo import run_processes
from mesh_work import places, wrong_size

from toolkit.parallel import ParallelConfig

WORLD = 4
CONFIGS = [
    ParallelConfig(data=4),
    ParallelConfig(data=2, shard=2, expert=2),
    ParallelConfig(data=2, shard=2, expert=4),
    ParallelConfig(shard=2, tensor=2, expert=2),
    ParallelConfig(shard=2, context=2),
    ParallelConfig(data=2, context=2, expert=2),
    ParallelConfig(context=2, tensor=2),
    ParallelConfig(pipeline=2, data=2),
    ParallelConfig(pipeline=2, tensor=2),
]
Coordinate = tuple[int, int, int, int, int]


@pytest.fixture(scope="module")
def placed() -> list[list[dict[str, Any]]]:
    """By rank, then by config."""
    return run_processes(WORLD, places, CONFIGS)


def coordinates(parallel: ParallelConfig) -> list[Coordinate]:
    """(pipeline, data, shard, context, tensor) of every rank: counted up, the last fastest."""
    return list(product(*map(range, parallel.shape)))  # type: ignore[arg-type]


def alike(all_of: list[Coordinate], mine: Coordinate, dims: tuple[int, ...]) -> list[int]:
    """The ranks that stand where ``mine`` does in ``dims``."""
    return [rank for rank, other in enumerate(all_of) if all(other[dim] == mine[dim] for dim in dims)]


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_every_process_stands_where_counting_puts_it(index: int, placed: list[list[dict[str, Any]]]) -> None:
    parallel = CONFIGS[index]
    everyone = coordinates(parallel)
    for rank, mine in enumerate(everyone):
        found = placed[rank][index]
        assert found["coordinate"] == mine
        for dim, name in enumerate(("pipeline", "data", "shard", "context", "tensor")):
            others = tuple(other for other in range(5) if other != dim)
            assert found["groups"][name] == alike(everyone, mine, others)
        assert found["tokens"] == alike(everyone, mine, (0, 4))


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_those_of_one_data_and_shard_rank_and_no_others_read_the_same(
    index: int, placed: list[list[dict[str, Any]]]
) -> None:
    everyone = coordinates(CONFIGS[index])
    read = [placed[rank][index]["batch"] for rank in range(WORLD)]
    assert {count for _, count in read} == {len({mine[1:3] for mine in everyone})}
    assert {reader for reader, _ in read} == set(range(read[0][1]))
    for one, other in product(range(WORLD), repeat=2):
        assert (read[one] == read[other]) == (everyone[one][1:3] == everyone[other][1:3])
        if (
            one < other and everyone[one][0] == everyone[other][0]
        ):  # in the order of ranks, as in plain data parallelism
            assert read[one] <= read[other]


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_gradients_are_averaged_over_all_whose_tokens_differ(index: int, placed: list[list[dict[str, Any]]]) -> None:
    """What is sharded over, copies of shards included, are the ranks of one pipeline and tensor place."""
    everyone = coordinates(CONFIGS[index])
    for place, mine in enumerate(everyone):
        mesh = placed[place][index]["sharding"]
        rows = mesh if isinstance(mesh[0], list) else [mesh]
        assert len(rows) == CONFIGS[index].data
        assert sorted(rank for row in rows for rank in row) == alike(everyone, mine, (0, 4))


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_experts_are_shared_by_neighbours_among_those_whose_tokens_differ(
    index: int, placed: list[list[dict[str, Any]]]
) -> None:
    parallel = CONFIGS[index]
    everyone = coordinates(parallel)
    for rank, mine in enumerate(everyone):
        found, ranks = placed[rank][index]["experts"], alike(everyone, mine, (0, 4))
        if parallel.expert == 1:
            assert found is None
        else:
            rows, tensor = found
            size = parallel.expert
            assert rows == [ranks[start : start + size] for start in range(0, len(ranks), size)]
            assert tensor == alike(everyone, mine, (0, 1, 2, 3))


def test_another_number_of_processes_is_refused() -> None:
    assert "=4: it must be 2, the processes of the default group" in run_processes(2, wrong_size)[0]
