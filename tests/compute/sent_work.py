"""What the processes of the tests of bytes sent do."""

from __future__ import annotations

from typing import Any

from toolkit.training.sent_bytes import count_sent_bytes


def all_sent(cases: list[tuple[Any, ...]]) -> list[float]:
    """Bytes of a step of each, in the same processes."""
    return [sum(count_sent_bytes(*case).values()) for case in cases]
