"""Bytes on one device of a run that is spread over many, from shapes alone."""

from toolkit.compute.memory.per_device import PRECISIONS, Memory, memory
from toolkit.compute.memory.supported import require_trainable

__all__ = ["PRECISIONS", "Memory", "memory", "require_trainable"]
