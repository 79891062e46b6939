"""Time of the rotation of queries and keys: ours, plain torch, and plain torch under ``torch.compile``.

    python experiments/benchmarks/rotary.py                  # on the CPU, a minute; ours is plain torch there
    python experiments/benchmarks/rotary.py --device cuda    # ours is one kernel; not yet measured

Timed is forward + backward from one projection (batch, length, (heads + 2 kv_heads) * head_dim) to one tensor of
rotated queries, rotated keys and values (batch, all heads, length, head_dim), and back. `ours` is `rotate_pairs` with
`heads`; `plain` rotates queries and keys each and concatenates. They take turns in one process: medians with quartiles,
and of each round the ratio of ours to the other.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from timing import in_turns, ratio
from torch import Tensor

from toolkit.layers.rotary.apply import plain_rotate_pairs, rotate_pairs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """Sizes of one problem; ``rotary_dim`` of ``head_dim`` dims are rotated."""

    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int

    def __str__(self) -> str:
        heads = f"{self.heads}+2x{self.kv_heads} heads"
        return f"{self.batch} x {self.length}, {heads}, {self.rotary_dim} of {self.head_dim} dims"


SHAPES = {
    "cpu": (Shape(4, 512, 8, 8, 64, 64), Shape(1, 4096, 8, 2, 64, 64), Shape(1, 2048, 8, 2, 128, 32)),
    "cuda": (Shape(8, 4096, 32, 8, 128, 128), Shape(1, 131_072, 32, 8, 128, 128), Shape(8, 4096, 32, 8, 256, 64)),
}


def ours(qkv: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, heads: int, kv_heads: int) -> Tensor:
    """In one call."""
    return rotate_pairs(qkv, cos, sin, interleaved, heads + kv_heads)


def plain(qkv: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, heads: int, kv_heads: int) -> Tensor:
    """By plain torch."""
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    return torch.cat([*(plain_rotate_pairs(x, cos, sin, interleaved) for x in (q, k)), v], dim=1)


def contenders(shape: Shape, dtype: torch.dtype, interleaved: bool, device: str) -> dict[str, Callable[[], Any]]:
    """What takes turns, by name; each result and gradient is held to plain torch's."""
    all_heads = shape.heads + 2 * shape.kv_heads
    projected = torch.randn(shape.batch, shape.length, all_heads * shape.head_dim, dtype=dtype, device=device)
    angles = torch.arange(shape.length, device=device)[None, :, None] * torch.rand(shape.rotary_dim // 2, device=device)
    d_out = torch.randn(shape.batch, all_heads, shape.length, shape.head_dim, dtype=dtype, device=device)
    cos, sin = angles.cos(), angles.sin()
    projected.requires_grad_()

    def run(rotate: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        qkv = rearrange(projected, "b n (h d) -> b h n d", d=shape.head_dim)
        out = rotate(qkv, cos, sin, interleaved, shape.heads, shape.kv_heads)
        return out, *torch.autograd.grad(out, projected, d_out)

    torch.compiler.reset()  # a compilation for each shape, not one for all
    ways = {"ours": ours, "plain": plain, "compiled": torch.compile(plain, fullgraph=True, dynamic=False)}
    expected = run(plain)
    for way in ways.values():
        for mine, theirs in zip(run(way), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=2 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)
    return {name: lambda way=way: run(way) for name, way in ways.items()}  # type: ignore[misc]


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(SHAPES), default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=tuple(DTYPES))
    parser.add_argument("--rounds", type=int, default=15, help="9 or more")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.device}, {options.threads} threads, torch {torch.__version__}, {options.rounds} rounds")
    for shape in SHAPES[options.device]:
        for interleaved in (False, True):
            for dtype in options.dtype:
                runs = contenders(shape, DTYPES[dtype], interleaved, options.device)
                times = dict(zip(runs, in_turns(list(runs.values()), options.rounds, options.device), strict=True))
                print(f"\n{shape}, {'interleaved' if interleaved else 'half-rotated'}, {dtype}")
                for name, taken in times.items():
                    low, middle, high = (1e3 * quartile for quartile in statistics.quantiles(taken, n=4))
                    line = f"  {name:9} {middle:8.2f} ({low:.2f} to {high:.2f}) ms"
                    print(line if name == "ours" else f"{line}   ours / it {ratio(times['ours'], taken)}", flush=True)


if __name__ == "__main__":
    main()
