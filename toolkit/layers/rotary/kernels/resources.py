"""What the rotation launches, recorded to be compiled for cards that are not here."""

from __future__ import annotations

import torch

from toolkit.kernels.compile import Resources
from toolkit.kernels.compile import faults as compiled_faults
from toolkit.kernels.launch import Recorded, recording
from toolkit.layers.rotary.kernels.launch import rotate

REGISTER_LIMIT = {True: 64, False: 128}
"""Of a thread, where rotary_dim / 2 is a multiple of 8, and where not, so that elements are read one by one. With 64 at
least half of the threads that an NVIDIA card has room for are resident, to keep its memory busy."""


def shipped_launch(head_dim: int, rotary_dim: int, dtype: torch.dtype, interleaved: bool) -> Recorded:
    """The launch for queries, keys and values in one projection (batch, length, heads * head_dim), values unturned."""
    batch, length, heads = 2, 256, 8
    x = torch.zeros(batch, length, heads, head_dim, dtype=dtype).transpose(1, 2)
    cos = torch.zeros(batch, length, rotary_dim // 2)
    with recording() as found:
        rotate(x, cos, cos, torch.zeros(batch, heads, length, head_dim, dtype=dtype), interleaved, 6, False)
    (launch,) = found
    return launch


def faults(found: Resources, launch: Recorded, family: str) -> list[str]:
    """Why the compiled kernel would not do; none if it will."""
    wrong = compiled_faults(found, family, element=2, multiplies=False, stack_limit=0)
    limit = REGISTER_LIMIT[launch.arguments["HALF"] % 8 == 0]
    if found.registers > limit:
        wrong.append(f"registers {found.registers} above {limit}")
    return wrong
