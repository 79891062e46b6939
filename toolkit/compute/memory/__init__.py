"""Bytes on one device of a run that is spread over many, from shapes alone."""

from toolkit.compute.memory.per_device import PRECISIONS, Memory, memory

__all__ = ["PRECISIONS", "Memory", "memory"]
