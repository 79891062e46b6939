"""Plan equal-compute studies: shapes, grids, recipes and the runs they come to."""

from toolkit.scaling.plan.grid import Grid, IsoFLOP
from toolkit.scaling.plan.recipe import Recipe, Search
from toolkit.scaling.plan.runs import (
    TOLERANCE,
    PlannedRun,
    data_warnings,
    grid_warnings,
    plan_isoflop,
    plan_run,
)
from toolkit.scaling.plan.shape import ARMS, Family, ModelShape, Shape

__all__ = [
    "ARMS",
    "TOLERANCE",
    "Family",
    "Grid",
    "IsoFLOP",
    "ModelShape",
    "PlannedRun",
    "Recipe",
    "Search",
    "Shape",
    "data_warnings",
    "grid_warnings",
    "plan_isoflop",
    "plan_run",
]
