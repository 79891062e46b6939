"""What every auxiliary loss of a router is: a name, a coefficient, and a value to be made small."""

from __future__ import annotations

from torch import Tensor, nn

from toolkit.checks import require
from toolkit.routing.assignment import Assignment


class AuxiliaryLoss(nn.Module):
    """coefficient * value(assignment); a subclass gives :meth:`value`.

    Routers call their losses in training forwards, with what was chosen before anything is dropped. Padding
    (``assignment.valid``) is in none of them. Counts carry no gradient: probabilities and gates do.

    Args:
        coefficient: weight of the loss.

    Attributes:
        name: what the loss is logged and summed under; a router's losses have different ones.

    Raises:
        ValueError: if ``coefficient`` is negative.
    """

    name = "auxiliary"

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        require(coefficient >= 0, "coefficient", coefficient, "0 or more")
        self.coefficient = coefficient

    def forward(self, assignment: Assignment) -> Tensor:
        """What a router chose -> scalar, fp32 (fp64 for fp64 weights)."""
        return self.coefficient * self.value(assignment)

    def value(self, assignment: Assignment) -> Tensor:
        """What a router chose -> the loss before its coefficient, a scalar."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The coefficient, for ``print(model)``."""
        return f"coefficient={self.coefficient:g}"
