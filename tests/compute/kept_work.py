"""What the processes of the tests of memory over processes do."""

from __future__ import annotations

from typing import Any

from toolkit.training.kept_bytes import KeptBytes, count_kept_bytes


def all_kept(cases: list[tuple[Any, ...]]) -> list[KeptBytes]:
    """Of a step of each, in the same processes."""
    return [count_kept_bytes(*case) for case in cases]
