"""The machine that a study is run on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe() -> str:
    """The processor and its cores, one line."""
    return f"{_processor()}, {cores()} cores"


def cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
