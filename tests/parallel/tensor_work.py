"""What the processes of the tests of tensor parallelism do."""

from __future__ import annotations

from typing import Any

import torch
from strategies_work import decoder
from torch.distributed.tensor import DTensor

from toolkit.layers import SelfAttention
from toolkit.models import Decoder
from toolkit.parallel import ParallelConfig, build_mesh, full_state_dict, load_full_state_dict, parallelize


def built(kind: str, parallel: ParallelConfig) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(decoder(kind))
    parallelize(model, build_mesh(parallel))
    return model


def held(kind: str, parallel: ParallelConfig) -> dict[str, tuple[int, int]]:
    """Numbers that this process holds of each parameter, and all of them."""
    return {
        name: (parameter.to_local().numel(), parameter.numel())
        for name, parameter in built(kind, parallel).named_parameters()
        if isinstance(parameter, DTensor)
    }


def refused_length(length: int) -> str:
    try:
        built("dense", ParallelConfig(tensor=2))(torch.zeros(1, length, dtype=torch.int64))
    except ValueError as error:
        return str(error)
    return ""


def as_it_was() -> list[bool]:
    """Layers show their whole selves outside of a forward, also after one that failed; sharded norms see a part."""
    model = built("moe", ParallelConfig(tensor=2))
    seen: list[int] = []
    model.blocks[0].attention_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    model(torch.zeros(1, 8, dtype=torch.int64))
    attention = model.blocks[0].attention
    assert isinstance(attention, SelfAttention)
    whole = [attention.heads == 4, attention.kv_heads == 2, isinstance(attention.qkv_proj, DTensor), seen == [4]]

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    attention.core.register_forward_pre_hook(fail)
    try:
        model(torch.zeros(1, 8, dtype=torch.int64))
    except RuntimeError:
        whole.append(attention.heads == 4 and isinstance(attention.qkv_proj, DTensor))
    return whole


def round_trip(kind: str, parallel: ParallelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole state; and that of another model after loading ten times it."""
    model = built(kind, parallel)
    state = full_state_dict(model)
    before = _lists(state)
    load_full_state_dict(model, {name: 10 * tensor for name, tensor in state.items()})
    return before, _lists(full_state_dict(model))


def _lists(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in state.items()}
