"""What the processes of the tests of meshes do."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from toolkit.parallel import ParallelConfig, build_mesh


def places(configs: list[ParallelConfig]) -> list[dict[str, Any]]:
    """Where this process stands in the mesh of each config."""
    return [_place(parallel) for parallel in configs]


def _place(parallel: ParallelConfig) -> dict[str, Any]:
    meshes = build_mesh(parallel)
    names = meshes.world.mesh_dim_names
    assert names is not None
    return {
        "coordinate": tuple(meshes.rank_in(name) for name in names),
        "groups": {name: _ranks(meshes.world.get_group(name)) for name in names},
        "batch": (meshes.batch_rank, meshes.batch_count),
        "sharding": meshes.sharding.mesh.tolist(),
        "tokens": _ranks(meshes.tokens),
        "experts": None if meshes.experts is None else _of_experts(meshes.expert),
    }


def _of_experts(mesh: DeviceMesh) -> tuple[list[list[int]], list[int]]:
    """Ranks by (expert_data, expert) at this process's place in the tensor group; and that group."""
    if mesh.ndim == 2:
        return mesh.mesh.tolist(), [dist.get_rank()]
    return mesh.mesh[:, :, mesh.get_local_rank(2)].tolist(), _ranks(mesh.get_group(2))


def _ranks(group: dist.ProcessGroup) -> list[int]:
    return dist.get_process_group_ranks(group)


def wrong_size() -> str:
    try:
        build_mesh(ParallelConfig(shard=4))
    except ValueError as error:
        return str(error)
    return ""
