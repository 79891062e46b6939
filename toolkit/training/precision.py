"""Which number format a device trains best in."""

from __future__ import annotations

import torch


def resolve_precision(precision: str, accelerator: str) -> str:
    """Lightning's precision for ``"auto"``: bf16-mixed where bf16 products are done in hardware.

    Args:
        precision: a choice of ``TrainingConfig.precision``; anything but ``"auto"`` is returned as it is.
        accelerator: ``"auto"``, ``"cpu"`` or ``"gpu"``.
    """
    if precision != "auto":
        return precision
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    hardware = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else _cpu_has_bf16()
    return "bf16-mixed" if hardware else "32-true"


def _cpu_has_bf16() -> bool:
    """AVX512-BF16 or AMX, as torch itself detects them."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)
