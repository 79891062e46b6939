"""The families of cards that tiles are chosen for."""

from __future__ import annotations

import torch

from toolkit.checks import require

FAMILIES = ("sm80", "sm90", "sm100", "gfx942")


def family_of(device: torch.device) -> str:
    """The family of cards whose tiles suit ``device``; the interpreter, on the CPU, takes those of sm80.

    Raises:
        ValueError: a CUDA card older than compute capability 8.0.
    """
    if device.type == "cpu":
        return "sm80"
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    require(major >= 8, "device", f"compute capability {major}.{minor}", "8.0 or later for the Triton kernels")
    return {9: "sm90", 10: "sm100"}.get(major, "sm80")


def next_power_of_two(number: int) -> int:
    """The least power of two that is not below ``number``."""
    return 1 << max(number - 1, 0).bit_length()
