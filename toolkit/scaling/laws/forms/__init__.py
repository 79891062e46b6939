"""Parametric forms of the loss over runs of many families."""

from toolkit.scaling.laws.forms.dense import Chinchilla, OneExponent, SharedExponents, SharedIrreducible
from toolkit.scaling.laws.forms.experts import Clark, Granularity, JointMoE, SparsitySurface
from toolkit.scaling.laws.forms.form import Form

__all__ = [
    "Chinchilla",
    "Clark",
    "Form",
    "Granularity",
    "JointMoE",
    "OneExponent",
    "SharedExponents",
    "SharedIrreducible",
    "SparsitySurface",
]
