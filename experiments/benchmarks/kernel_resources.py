"""What every shipped configuration of the attention kernels takes on each card: compiled here, run nowhere.

    python experiments/benchmarks/kernel_resources.py --target sm90 --head-dim 128 --dtype bf16 --kernel forward

Registers are of a thread, `stack` is where spilled registers go, `shared` is bytes of a program, `instruction`
the tensor-core instruction and how many of it. Needs Triton, no GPU; two to thirty seconds a line.
"""

from __future__ import annotations

import argparse
from itertools import product

import torch

from toolkit.attention.kernels.config import FAMILIES, KERNELS
from toolkit.attention.kernels.resources import FEATURES, Recorded, compile_for, faults, shipped_launches

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
COLUMNS = "{:<8} {:<8} {:>8} {:<5} {:<7} {:>9} {:>5} {:>6} {:>9} {:>6} {:>7} {:>8}  {}"


def line(launch: Recorded, family: str, head_dim: int, dtype: str, features: str) -> str:
    """One row of the table."""
    found, tile = compile_for(launch, family), launch.tile
    block_m, block_n = (launch.arguments.get(name, 0) for name in ("BLOCK_M", "BLOCK_N"))
    size = f"{block_m}x{block_n}" if block_n else "-"
    instruction = f"{found.count} {found.instruction}" if found.count else "none"
    wrong = faults(found, launch, family)
    note = f"{instruction}{'; WRONG: ' + ', '.join(wrong) if wrong else ''}"
    resources = (found.registers, found.stack, found.spills, found.shared)
    configuration = (family, launch.name, head_dim, dtype, features, size, tile.num_warps, tile.num_stages)
    return COLUMNS.format(*configuration, *resources, note)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--target", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--head-dim", nargs="+", type=int, default=(64, 128, 256))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=tuple(DTYPES))
    parser.add_argument("--features", nargs="+", choices=FEATURES, default=("scored", "dropout"))
    chosen = parser.parse_args()
    names = ("target", "kernel", "head_dim", "dtype", "with", "tile", "warps", "stages", "registers", "stack")
    print(COLUMNS.format(*names, "spills", "shared", "instructions"))
    for target, head_dim, dtype, features in product(chosen.target, chosen.head_dim, chosen.dtype, chosen.features):
        for launch in shipped_launches(head_dim, DTYPES[dtype], target, features):
            if launch.name in chosen.kernel:
                print(line(launch, target, head_dim, dtype, features), flush=True)


if __name__ == "__main__":
    main()
