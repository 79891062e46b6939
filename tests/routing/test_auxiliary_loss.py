"""What all auxiliary losses share."""

from __future__ import annotations

import pytest
import torch
from routed_cases import routed
from torch import Tensor

from toolkit.routing import Assignment, AuxiliaryLoss, GShardLoss, ImportanceLoss, LoadBalancingLoss, RouterZLoss


class Tokens(AuxiliaryLoss):
    def value(self, assignment: Assignment) -> Tensor:
        return torch.tensor(float(assignment.tokens))


def test_the_value_is_scaled_by_the_coefficient() -> None:
    assert float(Tokens(0.5)(routed(torch.randn(6, 4), 2))) == 3.0
    assert "coefficient=0.5" in repr(Tokens(0.5))


@pytest.mark.parametrize("loss", [LoadBalancingLoss, GShardLoss, RouterZLoss, ImportanceLoss, Tokens])
def test_a_negative_coefficient_is_refused(loss: type) -> None:
    with pytest.raises(ValueError, match=r"coefficient=-0\.1: it must be 0 or more"):
        loss(-0.1)
