"""When a forward is a rerun."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from toolkit.routing import recomputing
from toolkit.routing.recompute import add_once


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_forward_inside_a_backward_is_one(reentrant: bool) -> None:
    seen: list[bool] = []

    def run(x: Tensor) -> Tensor:
        seen.append(recomputing())
        return x.sin()

    x = torch.randn(3, requires_grad=True)
    loss = checkpoint(run, x, use_reentrant=reentrant).sum()
    assert seen == [False]
    loss.backward()
    assert seen == [False, True]
    run(x)
    assert seen == [False, True, False]


def test_an_ordinary_forward_is_none_with_or_without_gradients() -> None:
    assert not recomputing()
    with torch.no_grad():
        assert not recomputing()
    torch.randn(2, requires_grad=True).sum().backward()
    assert not recomputing()


def test_while_compiling_it_is_none() -> None:
    compiled = torch.compile(lambda x: x + 1 if recomputing() else x - 1, fullgraph=True, backend="eager")
    assert float(compiled(torch.tensor(0.0))) == -1.0


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_what_is_added_once_is_not_added_again_by_a_rerun(reentrant: bool, compiled: bool) -> None:
    total = torch.zeros(2, dtype=torch.int64)

    def run(x: Tensor) -> Tensor:
        add_once(total, (x.detach() > 0).sum(dim=0))
        return x.sin()

    chosen = torch.compile(run, fullgraph=True, backend="aot_eager") if compiled else run
    x = torch.tensor([[1.0, -1.0], [2.0, 3.0]], requires_grad=True)
    for times in (1, 2):
        checkpoint(chosen, x, use_reentrant=reentrant).sum().backward()
        assert total.tolist() == [2 * times, times]
