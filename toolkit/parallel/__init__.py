"""How one training run is spread over devices."""

from toolkit.parallel.clip import clip_gradients, gradient_norm
from toolkit.parallel.config import ParallelConfig, is_main_process
from toolkit.parallel.mesh import Meshes, build_mesh
from toolkit.parallel.parallelize import parallelize
from toolkit.parallel.processes import leave_process_group
from toolkit.parallel.sharded import shard_layers
from toolkit.parallel.state import (
    full_gradients,
    full_optimizer_state,
    full_state_dict,
    load_full_optimizer_state,
    load_full_state_dict,
)
from toolkit.parallel.tensor import tensor_parallel
from toolkit.parallel.traffic import SentBytes

__all__ = [
    "Meshes",
    "ParallelConfig",
    "SentBytes",
    "build_mesh",
    "clip_gradients",
    "full_gradients",
    "full_optimizer_state",
    "full_state_dict",
    "gradient_norm",
    "is_main_process",
    "leave_process_group",
    "load_full_optimizer_state",
    "load_full_state_dict",
    "parallelize",
    "shard_layers",
    "tensor_parallel",
]
