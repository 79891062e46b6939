"""A row's sizes by convention, against the parameters of the model itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from synthetic_study import run_result

from toolkit.compute import cost
from toolkit.models import Decoder
from toolkit.scaling.plan import Family, ModelShape
from toolkit.scaling.results import COUNTS, RunResult, size


def row_and_model(family: str, tied: bool) -> tuple[RunResult, dict[str, int]]:
    """A row as a study writes it, and the model's parameters by name, a shared one once."""
    shape = ModelShape((Family("dense"), Family("moe", 8, 2, shared_experts=1)), head_dim=8, tied_head=tied)
    config = shape.decoder(family, 24, 64)
    price = cost(config, 16)
    row = replace(
        run_result(family, 1e9, 24, 0, 2.0),
        parameters=price.total_parameters,
        active_parameters=price.total_active_parameters,
        embedding_parameters=price.parameters["embedding"],
        head_parameters=price.parameters.get("head", 0),
    )
    return row, {name: parameter.numel() for name, parameter in Decoder(config).named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["dense", "moe"])
def test_each_convention_counts_what_it_says_of_the_models_own_parameters(family: str, tied: bool) -> None:
    row, sizes = row_and_model(family, tied)
    matrix = 64 * 24
    routed = sum(count for name, count in sizes.items() if ".experts." in name and "shared" not in name)
    idle = routed * 6 // 8
    blocks = sum(count for name, count in sizes.items() if count != matrix or "blocks" in name)
    matrices = 1 if tied else 2
    assert sum(sizes.values()) == blocks + matrices * matrix
    assert (routed > 0) == (family == "moe")
    assert {count: size(row, count) for count in COUNTS} == {
        "active": blocks - idle,
        "active_with_head": blocks - idle + matrix,
        "active_total": blocks - idle + matrices * matrix,
        "total": sum(sizes.values()),
    }


def test_what_is_multiplied_with_is_what_counts_unless_said_otherwise() -> None:
    row, _ = row_and_model("moe", tied=False)
    assert size(row) == size(row, "active_with_head")
    assert row.head_matrix == 64 * 24
    assert row.flops_per_token == row.flops_spent / row.tokens


def test_another_convention_is_refused() -> None:
    with pytest.raises(ValueError, match="convention='all': it must be one of 'active'"):
        size(run_result("dense", 1e9, 24, 0, 2.0), "all")
