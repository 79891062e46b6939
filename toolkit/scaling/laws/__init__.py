"""Scaling laws: isoFLOP curves, loss surfaces of one family and of many, and how well they predict."""

from toolkit.scaling.laws.approaches import (
    Allocation,
    AllocationBias,
    envelope_allocation,
    parabola_allocation,
    parabola_bias,
)
from toolkit.scaling.laws.envelope import Envelope, TrainingCurve, compute_envelope
from toolkit.scaling.laws.exponents import ConventionExponents, exponents_by_convention
from toolkit.scaling.laws.form_fit import FittedForm, FormBootstrap, fit_form
from toolkit.scaling.laws.forms import (
    Chinchilla,
    Clark,
    Form,
    Granularity,
    JointMoE,
    OneExponent,
    SharedExponents,
    SharedIrreducible,
    SparsitySurface,
)
from toolkit.scaling.laws.isoflop import IsoFLOPMinimum, isoflop_minima
from toolkit.scaling.laws.power_law import PowerLaw, fit_power_law
from toolkit.scaling.laws.runs import Runs, runs_of
from toolkit.scaling.laws.surface import LossSurface, Optimum
from toolkit.scaling.laws.surface_fit import FittedSurface, SurfaceBootstrap, fit_loss_surface
from toolkit.scaling.laws.validation import (
    RolloutCut,
    Score,
    Selection,
    SelectionTable,
    cross_validate,
    rollout,
    select,
)

__all__ = [
    "Allocation",
    "AllocationBias",
    "Chinchilla",
    "Clark",
    "ConventionExponents",
    "Envelope",
    "FittedForm",
    "FittedSurface",
    "Form",
    "FormBootstrap",
    "Granularity",
    "IsoFLOPMinimum",
    "JointMoE",
    "LossSurface",
    "OneExponent",
    "Optimum",
    "PowerLaw",
    "RolloutCut",
    "Runs",
    "Score",
    "Selection",
    "SelectionTable",
    "SharedExponents",
    "SharedIrreducible",
    "SparsitySurface",
    "SurfaceBootstrap",
    "TrainingCurve",
    "compute_envelope",
    "cross_validate",
    "envelope_allocation",
    "exponents_by_convention",
    "fit_form",
    "fit_loss_surface",
    "fit_power_law",
    "isoflop_minima",
    "parabola_allocation",
    "parabola_bias",
    "rollout",
    "runs_of",
    "select",
]
