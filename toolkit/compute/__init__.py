"""Parameters, FLOPs and memory: closed forms, checked against measurement."""

from toolkit.compute import formulas as formulas
from toolkit.compute.cost import CONVENTIONS, Cost, cost
from toolkit.compute.measure import Measured, measure
from toolkit.compute.memory import Memory, memory

__all__ = ["CONVENTIONS", "Cost", "Measured", "Memory", "cost", "measure", "memory"]
