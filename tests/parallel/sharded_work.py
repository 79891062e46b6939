"""What the processes of the tests of sharding do."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from strategies_work import decoder
from torch import nn
from torch.distributed.tensor import DTensor

from toolkit.models import Decoder
from toolkit.parallel import ParallelConfig, build_mesh, shard_layers
from toolkit.parallel.sharded import reshard


def built(kind: str, parallel: ParallelConfig, **settings: Any) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(decoder(kind))
    ignored = {parameter for name, parameter in model.named_parameters() if settings.get("but", "none") in name}
    shard_layers(model, build_mesh(parallel).sharding, parallel, ignored)
    return model


def held(kind: str, parallel: ParallelConfig) -> tuple[int, int]:
    """Numbers that this process holds, and all."""
    parameters = list(built(kind, parallel).parameters())
    return sum(each.to_local().numel() for each in parameters if isinstance(each, DTensor)), sum(
        each.numel() for each in parameters
    )


def after_a_forward(parallel: ParallelConfig) -> list[bool]:
    """Whether layers, and then the embedding, are cut: after a forward, and after giving back what is still held."""
    model = built("moe", parallel)
    model(torch.zeros(2, 8, dtype=torch.int64))
    found = [_is_cut(model.blocks[0]), _is_cut(model.embedding)]
    reshard(model)
    return [*found, _is_cut(model.blocks[0]), _is_cut(model.embedding)]


def _is_cut(module: nn.Module) -> bool:
    return all(isinstance(parameter, DTensor) for parameter in module.parameters())


def left_alone() -> tuple[bool, list[float], list[float]]:
    """Whether experts are plain; of one of them and of a norm, this process's gradient."""
    model = built("moe", ParallelConfig(shard=2), but="experts")
    experts = model.blocks[1].feed_forward.experts
    tokens = torch.arange(16).view(2, 8) + dist.get_rank()
    model(tokens).logits.square().sum().backward()
    norm = model.norm.weight.grad
    assert isinstance(norm, DTensor)
    return (
        not isinstance(experts.down_proj, DTensor),
        experts.down_proj.grad.flatten().tolist(),
        norm.full_tensor().tolist(),
    )


def seen_dtypes(gather_dtype: str) -> tuple[str, str, str]:
    """Of a layer's weight while it runs, of the weight that is kept, and of its gradient."""
    model = built("dense", ParallelConfig(shard=2, gather_dtype=gather_dtype))
    seen: list[torch.dtype] = []
    layer = model.blocks[0].attention
    layer.register_forward_pre_hook(lambda module, _: seen.append(module.o_proj.dtype))
    model(torch.zeros(2, 8, dtype=torch.int64)).logits.float().sum().backward()
    return str(seen[0]), str(layer.o_proj.dtype), str(layer.o_proj.grad.dtype)
