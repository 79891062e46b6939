"""FLOP formulas for operators that torch's ``FlopCounterMode`` would count as free.

Importing ``toolkit.compute`` registers them, so that a model measured with them counts its experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula


def grouped_mm_flops(a_shape: Any, b_shape: Any, *args: Any, **settings: Any) -> int:
    """2 x multiply-adds of torch's grouped product: every row meets one group's matrix.

    Shapes: (rows, k) x (groups, k, m), rows grouped; (k, rows) x (rows, m), the sum over rows grouped; or
    (groups, m, k) x (k, rows), columns grouped. In each, the grouped axis counts once, whatever the groups.
    """
    if len(a_shape) == 2 and len(b_shape) == 3:
        return int(2 * a_shape[0] * a_shape[1] * b_shape[2])
    if len(a_shape) == 2 and len(b_shape) == 2:
        return int(2 * a_shape[0] * a_shape[1] * b_shape[1])
    if len(b_shape) == 2:
        return int(2 * a_shape[1] * a_shape[2] * b_shape[1])
    return int(2 * a_shape[0] * a_shape[1] * a_shape[2] * b_shape[2])


if torch.ops.aten._grouped_mm not in flop_registry:
    register_flop_formula(torch.ops.aten._grouped_mm)(grouped_mm_flops)
