"""Kernels compiled for cards that are not here, and what they need there: registers, stack, shared memory."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from toolkit.kernels.families import FAMILIES
from toolkit.kernels.launch import Recorded

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMIT = dict(zip(FAMILIES, (101_376, 232_448, 232_448, 65_536), strict=True))
"""Bytes of shared memory one program may take. sm80's tiles serve cards of 8.6, 8.9 and 12.0 too (8.0 has 166,912)."""

_INSTRUCTIONS = {
    "sm80": ("ptx", r"\bmma\.sync"),
    "sm90": ("ptx", r"\bwgmma\.mma_async|\bmma\.sync"),
    "sm100": ("ptx", r"\btcgen05\.mma|\bmma\.sync"),
    "gfx942": ("amdgcn", r"\bv_mfma"),
}
_ALIGNED = [["tt.divisibility", 16]]
_TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int8: "*i8"}
_TYPES |= {torch.int32: "*i32", torch.int64: "*i64"}


@dataclass(frozen=True)
class Resources:
    """What one program of a compiled kernel takes.

    Attributes:
        registers: of a thread (gfx942: vector registers).
        stack: bytes of local memory of a thread, which is where spilled registers go.
        spills: vector registers spilled, where the compiler counts them (gfx942).
        shared: bytes of shared memory.
        instruction: the tensor-core instruction, "" if there is none.
        count: how many of it.
        trapped: the kernel is nothing but a trap: the compiler gave up on it.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    instruction: str
    count: int
    trapped: bool


def faults(found: Resources, family: str, *, element: int, multiplies: bool, stack_limit: int | None) -> list[str]:
    """Why a compiled kernel would not do; none if it will.

    Args:
        found: what was read of it.
        family: of the cards it was compiled for.
        element: bytes of an element of its inputs.
        multiplies: it multiplies matrices, on tensor cores if ``element`` is 2; fp32 must not be rounded to TF32.
        stack_limit: bytes of stack that a thread may take; None does not ask.
    """
    wrong = []
    if found.trapped:
        wrong.append("compiled to a trap")
    if found.shared > SHARED_LIMIT[family]:
        wrong.append(f"shared {found.shared} above {SHARED_LIMIT[family]}")
    if multiplies and element == 2 and found.count == 0:
        wrong.append("no tensor-core instruction")
    if multiplies and element == 4 and family != "gfx942" and found.count > 0:
        wrong.append(f"{found.instruction} rounds fp32 to TF32")
    if stack_limit is not None and (found.stack > stack_limit or found.spills > 0):
        wrong.append(f"stack {found.stack} above {stack_limit}, {found.spills} spills")
    return wrong


def compile_for(launch: Recorded, family: str) -> Resources:
    """Compile a recorded launch as Triton would at run time, for a card of ``family``, and read what it takes."""
    tile = launch.tile
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    if family == "gfx942" and tile.waves_per_eu:
        options["waves_per_eu"] = tile.waves_per_eu
    compiled = triton.compile(_source(launch), target=TARGETS[family], options=options)
    text, pattern = _INSTRUCTIONS[family]
    found = re.findall(pattern, compiled.asm[text])
    read = _read_amdgcn if family == "gfx942" else _read_cubin
    registers, stack, spills, trapped = read(compiled)
    instruction = min(set(found), key=lambda name: (name == "mma.sync", name), default="")
    return Resources(registers, stack, spills, compiled.metadata.shared, instruction, len(found), trapped)


def _source(launch: Recorded) -> ASTSource:
    """The specialisation Triton makes at run time: 1, None and constexprs are folded in, multiples of 16 are noted."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for n, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        specialised = not parameter.do_not_specialize
        if isinstance(value, Tensor):
            signature[parameter.name] = _TYPES[value.dtype]
            attributes[(n,)] = _ALIGNED
        elif parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and specialised):
            signature[parameter.name] = "constexpr"
            constants[(n,)] = value
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and specialised:
                attributes[(n,)] = _ALIGNED
    return ASTSource(launch.kernel, signature, constants, attributes)


def _read_cubin(compiled: Any) -> tuple[int, int, int, bool]:
    """Registers, stack, spills (in the stack), trap; by cuobjdump, which the Triton wheel ships."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.findall(rf"{key}:(\d+)", usage)[-1]) for key in ("REG", "STACK"))
    return registers, stack, 0, "st.global" not in compiled.asm["ptx"]


def _read_amdgcn(compiled: Any) -> tuple[int, int, int, bool]:
    text = compiled.asm["amdgcn"]
    registers, stack, spills = (
        int(re.findall(rf"\.{key}:\s*(\d+)", text)[-1])
        for key in ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count")
    )
    return registers, stack, spills, not re.search(r"\b(global|buffer|flat)_store", text)
