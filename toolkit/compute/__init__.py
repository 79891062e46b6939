"""Parameters, FLOPs, memory and bytes sent: closed forms, checked against measurement."""

from toolkit.compute import formulas as formulas
from toolkit.compute.cost import CONVENTIONS, Cost, cost
from toolkit.compute.measure import Measured, measure
from toolkit.compute.memory import Memory, memory
from toolkit.compute.roofline import DEVICES, Roofline, roofline
from toolkit.compute.traffic import Traffic, traffic

__all__ = [
    "CONVENTIONS",
    "DEVICES",
    "Cost",
    "Measured",
    "Memory",
    "Roofline",
    "Traffic",
    "cost",
    "measure",
    "memory",
    "roofline",
    "traffic",
]
