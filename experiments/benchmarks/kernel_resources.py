"""What every shipped configuration of the kernels takes on each card: compiled here, run nowhere.

    python experiments/benchmarks/kernel_resources.py --target sm90 --head-dim 128 --dtype bf16 --kernel forward
    python experiments/benchmarks/kernel_resources.py --kernels experts --target sm90 --dtype bf16
    python experiments/benchmarks/kernel_resources.py --kernels rotary --head-dim 64 80 128

Registers are of a thread, `stack` is where spilled registers go, `shared` is bytes of a program, `instruction`
the tensor-core instruction and how many of it. Needs Triton, no GPU; two to thirty seconds a line.
"""

from __future__ import annotations

import argparse
from itertools import product

import torch

from toolkit.attention.kernels import config as attention_config
from toolkit.attention.kernels import resources as attention
from toolkit.kernels.compile import Resources, compile_for
from toolkit.kernels.families import FAMILIES
from toolkit.kernels.launch import Recorded
from toolkit.layers.experts.activations import ACTIVATIONS
from toolkit.layers.experts.kernels import config as experts_config
from toolkit.layers.experts.kernels import resources as experts
from toolkit.layers.rotary.kernels import resources as rotary

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
COLUMNS = "{:<8} {:<8} {:>8} {:<5} {:<7} {:>9} {:>5} {:>6} {:>9} {:>6} {:>7} {:>8}  {}"
EXPERTS_COLUMNS = "{:<8} {:<8} {:<6} {:>9} {:<5} {:<14} {:>10} {:>5} {:>6} {:>9} {:>6} {:>7} {:>8}  {}"

ROTARY_COLUMNS = "{:<8} {:>8} {:>7} {:<5} {:<12} {:>9} {:>5} {:>9} {:>6} {:>7} {:>8}  {}"


def taken(found: Resources, wrong: list[str]) -> tuple[int | str, ...]:
    """The last columns of a row: what was found, and what is wrong with it."""
    instruction = f"{found.count} {found.instruction}" if found.count else "none"
    note = f"{instruction}{'; WRONG: ' + ', '.join(wrong) if wrong else ''}"
    return found.registers, found.stack, found.spills, found.shared, note


def line(launch: Recorded, family: str, head_dim: int, dtype: str, features: str) -> str:
    """One row of the table of attention."""
    found, tile = compile_for(launch, family), launch.tile
    block_m, block_n = (launch.arguments.get(name, 0) for name in ("BLOCK_M", "BLOCK_N"))
    size = f"{block_m}x{block_n}" if block_n else "-"
    configuration = (family, launch.name, head_dim, dtype, features, size, tile.num_warps, tile.num_stages)
    return COLUMNS.format(*configuration, *taken(found, attention.faults(found, launch, family)))


def experts_line(launch: Recorded, family: str, sizes: str, dtype: str, activation: str) -> str:
    """One row of the table of the experts; ``of`` says whose product it is: the first or the second weights'."""
    found, tile, given = compile_for(launch, family), launch.tile, launch.arguments
    second = launch.name == "gradient" or given.get("RIGHT_K") == 1 or given.get("left_token") is not None
    blocks = "x".join(str(given[f"BLOCK_{side}"]) for side in "MNK")
    configuration = (family, launch.name, "second" if second else "first", sizes, dtype, activation)
    wrong = experts.faults(found, launch, family)
    return EXPERTS_COLUMNS.format(*configuration, blocks, tile.num_warps, tile.num_stages, *taken(found, wrong))


def print_attention(chosen: argparse.Namespace) -> None:
    """The table of attention."""
    names = ("target", "kernel", "head_dim", "dtype", "with", "tile", "warps", "stages", "registers", "stack")
    print(COLUMNS.format(*names, "spills", "shared", "instructions"))
    for target, head_dim, dtype, features in product(chosen.target, chosen.head_dim, chosen.dtype, chosen.features):
        for launch in attention.shipped_launches(head_dim, DTYPES[dtype], target, features):
            if launch.name in (chosen.kernel or attention_config.KERNELS):
                print(line(launch, target, head_dim, dtype, features), flush=True)


def print_experts(chosen: argparse.Namespace) -> None:
    """The table of the experts; kernels that do not know the activation stand under the first one only."""
    names = ("target", "kernel", "of", "sizes", "dtype", "activation", "tile", "warps", "stages", "registers", "stack")
    print(EXPERTS_COLUMNS.format(*names, "spills", "shared", "instructions"))
    for target, sizes, dtype, activation in product(chosen.target, chosen.sizes, chosen.dtype, chosen.activation):
        dim, hidden_dim = map(int, sizes.split("x"))
        for launch in experts.shipped_launches(dim, hidden_dim, DTYPES[dtype], target, activation):
            knows = "ACTIVATION" in launch.arguments or activation == chosen.activation[0]
            if knows and launch.name in (chosen.kernel or experts_config.KERNELS):
                print(experts_line(launch, target, sizes, dtype, activation), flush=True)


def print_rotary(chosen: argparse.Namespace) -> None:
    """The table of the rotation: whole heads and half of their dims, in both layouts; it has no tensor-core product."""
    names = ("target", "head_dim", "rotated", "dtype", "layout", "tile", "warps", "registers", "stack", "spills")
    print(ROTARY_COLUMNS.format(*names, "shared", "instructions"))
    for target, head_dim, dtype, part, interleaved in product(
        chosen.target, chosen.head_dim, chosen.dtype, (1, 2), (False, True)
    ):
        launch = rotary.shipped_launch(head_dim, head_dim // part, DTYPES[dtype], interleaved)
        found, tile, layout = compile_for(launch, target), launch.tile, "interleaved" if interleaved else "half-rotated"
        configuration = (target, head_dim, head_dim // part, dtype, layout)
        size = f"{launch.arguments['BLOCK_N']}x{launch.arguments['GROUP']}"
        wrong = rotary.faults(found, launch, target)
        print(ROTARY_COLUMNS.format(*configuration, size, tile.num_warps, *taken(found, wrong)), flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kernels", choices=("attention", "experts", "rotary"), default="attention")
    kernels = sorted({*attention_config.KERNELS, *experts_config.KERNELS})
    parser.add_argument("--kernel", nargs="+", choices=kernels, help="default: all that multiply")
    parser.add_argument("--target", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=tuple(DTYPES))
    parser.add_argument("--head-dim", nargs="+", type=int, default=(64, 128, 256), help="of attention, rotary")
    parser.add_argument("--features", nargs="+", choices=attention.FEATURES, default=("scored", "dropout"))
    parser.add_argument("--sizes", nargs="+", default=("1024x512", "1000x344"), help="of experts: DIMxHIDDEN_DIM")
    parser.add_argument("--activation", nargs="+", choices=ACTIVATIONS, default=("swiglu", "clamped_swiglu"))
    chosen = parser.parse_args()
    tables = {"attention": print_attention, "experts": print_experts, "rotary": print_rotary}
    tables[chosen.kernels](chosen)


if __name__ == "__main__":
    main()
