"""A spread model's state is the whole model's, in its own layout, and goes back to where it came from."""

from __future__ import annotations

import pytest
import torch
from gloo import run_processes
from strategies_work import decoder
from tensor_work import round_trip
from torch import nn

from toolkit.models import Decoder
from toolkit.parallel import (
    ParallelConfig,
    full_optimizer_state,
    full_state_dict,
    load_full_optimizer_state,
    load_full_state_dict,
)


@pytest.mark.parametrize(
    ("kind", "parallel"),
    [
        ("moe", ParallelConfig(tensor=2)),
        ("biased", ParallelConfig(shard=2)),
        ("moe", ParallelConfig(tensor=2, shard=2)),
        ("moe", ParallelConfig(tensor=2, shard=2, expert=2)),
    ],
)
def test_the_whole_state_is_gathered_and_cut_again(kind: str, parallel: ParallelConfig) -> None:
    torch.manual_seed(0)
    expected = Decoder(decoder(kind)).state_dict()
    for gathered, loaded in run_processes(parallel.world_size, round_trip, kind, parallel):
        assert gathered == {name: tensor.tolist() for name, tensor in expected.items()}
        assert loaded == {name: (10 * tensor).tolist() for name, tensor in expected.items()}


def test_in_one_process_state_dicts_are_the_plain_ones() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    state, moments = full_state_dict(model), full_optimizer_state(optimizer, model)
    torch.testing.assert_close(state, dict(model.state_dict()), rtol=0, atol=0)
    assert moments["state"].keys() == optimizer.state_dict()["state"].keys()
    other = torch.optim.AdamW(model.parameters())
    load_full_optimizer_state(other, model, moments)
    torch.testing.assert_close(other.state_dict()["state"], moments["state"], rtol=0, atol=0)


def test_a_state_of_other_names_or_shapes_is_refused() -> None:
    model = nn.Linear(3, 2)
    state = full_state_dict(model)
    with pytest.raises(ValueError, match=r"state=\"without \['bias'\]\": it must be of the same"):
        load_full_state_dict(model, {"weight": state["weight"]})
    with pytest.raises(ValueError, match=r"state=\"with \['more'\]\": it must be of the same"):
        load_full_state_dict(model, {**state, "more": state["bias"]})
    with pytest.raises(ValueError, match=r"state\['bias'\].shape=\(3,\): it must be \(2,\)"):
        load_full_state_dict(model, {**state, "bias": torch.zeros(3)})
    load_full_state_dict(model, {"bias": torch.ones(2)}, strict=False)
    assert model.bias.tolist() == [1.0, 1.0]
