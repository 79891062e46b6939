"""Plan equal-compute grids, run them, fit what they say, and write the report."""

from toolkit.scaling.document import StudyDescription
from toolkit.scaling.folder import StudyFolder
from toolkit.scaling.laws.isoflop import IsoFLOPMinimum, isoflop_minima
from toolkit.scaling.laws.surface import LossSurface, Optimum
from toolkit.scaling.laws.surface_fit import FittedSurface, SurfaceBootstrap, fit_loss_surface
from toolkit.scaling.multiplier import ComputeMultiplier, compute_multiplier
from toolkit.scaling.plan import Family, Grid, IsoFLOP, ModelShape, PlannedRun, Recipe, Search, plan_isoflop
from toolkit.scaling.report import study_multipliers, write_report
from toolkit.scaling.results import RunResult
from toolkit.scaling.study import Study
from toolkit.scaling.table import ResultsTable

__all__ = [
    "ComputeMultiplier",
    "Family",
    "FittedSurface",
    "Grid",
    "IsoFLOP",
    "IsoFLOPMinimum",
    "LossSurface",
    "ModelShape",
    "Optimum",
    "PlannedRun",
    "Recipe",
    "ResultsTable",
    "RunResult",
    "Search",
    "Study",
    "StudyDescription",
    "StudyFolder",
    "SurfaceBootstrap",
    "compute_multiplier",
    "fit_loss_surface",
    "isoflop_minima",
    "plan_isoflop",
    "study_multipliers",
    "write_report",
]
