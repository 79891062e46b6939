"""Grids: what is spent on which widths, families and seeds, and by which recipe."""

from __future__ import annotations

from dataclasses import dataclass, field

from toolkit.checks import require, require_positive
from toolkit.scaling.plan.recipe import Recipe


@dataclass(frozen=True)
class IsoFLOP:
    """One budget and the widths trained on it.

    Attributes:
        flops: training FLOPs of each run, ``exact`` convention.
        dims: widths of the models.
        families: which families are trained on it; None for all of the study's.
    """

    flops: float
    dims: tuple[int, ...]
    families: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require_positive(flops=self.flops)
        require(len(self.dims) > 0 and min(self.dims) > 0, "dims", self.dims, "at least one positive width")


@dataclass(frozen=True)
class Grid:
    """The runs of a study.

    Attributes:
        budgets: what is spent, and on which widths.
        families: what is compared; None for every family of the shape.
        seeds: runs of each cell, with seeds 0, 1, ...
        recipe: how learning rate, batch and weight decay follow from width and tokens, for every family.
        branch: begin a run that is the beginning of one with a larger budget from that one's checkpoint; needs
            ``training.schedule="wsd"`` and ``training.warmup_steps``.
    """

    budgets: tuple[IsoFLOP, ...]
    families: tuple[str, ...] | None = None
    seeds: int = 2
    recipe: Recipe = field(default_factory=Recipe)
    branch: bool = False

    def __post_init__(self) -> None:
        require_positive(seeds=self.seeds)
        require(len(self.budgets) > 0, "budgets", self.budgets, "at least one")

    def cells(self, known: tuple[str, ...]) -> list[tuple[float, int, str]]:
        """(FLOPs, width, family) of all that is trained for each seed, budget by budget.

        Args:
            known: the families of the shape.

        Raises:
            ValueError: if a budget has no family, or one that the shape does not have.
        """
        cells = []
        for budget in self.budgets:
            families = next((asked for asked in (budget.families, self.families) if asked is not None), known)
            require(len(families) > 0, "families", families, "at least one among " + ", ".join(known))
            for family in families:
                require(family in known, "families", family, "among " + ", ".join(known))
            cells += [(budget.flops, dim, family) for dim in budget.dims for family in families]
        return cells
