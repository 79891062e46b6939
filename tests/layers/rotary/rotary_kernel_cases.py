"""The cases of the kernel's tests: every pair of two settings occurs in one of them, on the CPU or a GPU."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from pairwise import pairwise_settings
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One problem: of ``head_dim`` dims ``rotary_dim`` are rotated, of 5 heads ``heads``."""

    dims: tuple[int, int] = (16, 16)
    dtype: torch.dtype = torch.float32
    lies: str = "projected"
    length: int = 7
    interleaved: bool = False
    own_rows: bool = False
    heads: int = 5

    def __str__(self) -> str:
        flags = [name for name in ("interleaved", "own_rows") if getattr(self, name)]
        sizes = *map(str, self.dims), f"n{self.length}", f"h{self.heads}"
        return "-".join([*sizes, str(self.dtype)[6:], self.lies, *flags])


LEVELS: dict[str, tuple[object, ...]] = {
    "dims": ((16, 16), (48, 24), (80, 80), (256, 64)),
    "dtype": (torch.float32, torch.bfloat16, torch.float16),
    "lies": ("contiguous", "projected", "columns", "shared"),
    "length": (1, 7, 37),
    "interleaved": (False, True),
    "own_rows": (False, True),
    "heads": (5, 3),
}
assert [field.name for field in fields(Case)] == list(LEVELS)


def pairwise(seed: int) -> list[Case]:
    """Few cases in which any two settings of any two fields meet."""
    return [Case(**settings) for settings in pairwise_settings(LEVELS, seed)]


def laid(values: Tensor, lies: str) -> Tensor:
    """The values (batch, heads, length, head_dim) as callers lay them out, nan beside what is theirs.

    ``projected``: heads 1 to 5 of 7 in (batch, length, heads * head_dim); ``columns``: the last axis not the
    contiguous one; ``shared``: one row of values for the whole batch.
    """
    batch, heads, length, head_dim = values.shape
    if lies == "projected":
        store = values.new_full((batch, length, 7 * head_dim), torch.nan)
        view = store.view(batch, length, 7, head_dim).transpose(1, 2)[:, 1 : 1 + heads]
    elif lies == "columns":
        view = values.new_full((batch, heads, head_dim, length + 1), torch.nan)[..., :length].transpose(2, 3)
    elif lies == "shared":
        return values[:1].clone().expand(values.shape)
    else:
        return values.clone()
    return view.copy_(values)


def build(case: Case, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and d_out (2, 5, length, head_dim), each lying so, cos and sin (2 or 1, length, rotary_dim / 2) times 1.5."""
    torch.manual_seed(sum(map(ord, str(case))))
    head_dim, rotary_dim = case.dims
    x, d_out = (torch.randn(2, 5, case.length, head_dim).to(case.dtype) for _ in range(2))
    angles = 50 * torch.randn(2 if case.own_rows else 1, case.length, rotary_dim // 2)
    cos, sin = 1.5 * angles.cos(), 1.5 * angles.sin()
    return laid(x.to(device), case.lies), laid(d_out.to(device), case.lies), cos.to(device), sin.to(device)


def turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, heads: int) -> Tensor:
    """The textbook in fp64: a pair is a complex number, multiplied by cos + i sin."""
    out, turn = x.double().clone(), torch.complex(cos.double(), sin.double())[:, None]
    half = cos.shape[-1]
    for k in range(half):
        one, other = (2 * k, 2 * k + 1) if interleaved else (k, k + half)
        pair = torch.complex(x[:, :heads, :, one].double(), x[:, :heads, :, other].double()) * turn[..., k]
        out[:, :heads, :, one], out[:, :heads, :, other] = pair.real, pair.imag
    return out
