"""What each family could be built as: sizes and costs over widths, exactly counted, for laws to be read at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.checks import require
from toolkit.compute import cost
from toolkit.scaling.laws.runs import Runs
from toolkit.scaling.laws.surface import Floats
from toolkit.scaling.plan import Family, ModelShape


def architecture(shape: ModelShape) -> dict[str, tuple[float, float]]:
    """Of each family, its expansion rate and granularity, as :func:`toolkit.scaling.laws.runs.runs_of` takes them.

    The expansion rate is all experts' width over that of one token's (Ludziejewski et al. 2024, arXiv 2402.07871); the
    granularity the dense feed-forward's width over one expert's; both 1 for a dense family.
    """
    return {family.name: _architecture(family) for family in shape.arms}


def _architecture(family: Family) -> tuple[float, float]:
    if family.num_experts == 0:
        return 1.0, 1.0
    active = family.top_k + family.shared_experts
    return (family.num_experts + family.shared_experts) / active, float(active)


@dataclass(frozen=True)
class Widths:
    """One family at each of its widths.

    Attributes:
        family: its name.
        dims: widths, ascending.
        active: parameters multiplied with for one token, head included, (widths,).
        total: those and what a token leaves unused.
        flops: training FLOPs of one token, ``exact``.
        architecture: expansion rate and granularity.
    """

    family: str
    dims: tuple[int, ...]
    active: Floats
    total: Floats
    flops: Floats
    architecture: tuple[float, float]

    @classmethod
    def of(cls, shape: ModelShape, family: str, dims: Sequence[int], vocab_size: int, context: int) -> Widths:
        """Counted from the models that ``shape`` makes.

        Raises:
            ValueError: if the shape makes no model of a width.
        """
        require(len(dims) > 0, "dims", dims, "one width or more")
        dims = sorted(dims)
        prices = [cost(shape.decoder(family, dim, vocab_size), context) for dim in dims]
        heads = [price.parameters.get("head", 0) or price.parameters["embedding"] for price in prices]
        outside = [price.parameters["embedding"] + price.parameters.get("head", 0) for price in prices]
        active = np.array(
            [
                price.total_active_parameters - out + head
                for price, out, head in zip(prices, outside, heads, strict=True)
            ]
        )
        idle = [price.total_parameters - price.total_active_parameters for price in prices]
        flops = np.array([price.training_flops["exact"] for price in prices])
        return cls(family, tuple(dims), active, active + idle, flops, architecture(shape)[family])

    def runs(self, budgets: Floats) -> Runs:
        """A run of every budget at every width, (budgets * widths,), budgets outermost."""
        count, widths = len(budgets), len(self.dims)
        experts, granularity = self.architecture
        spent = np.repeat(budgets, widths)
        return Runs.of(
            np.tile(self.active, count),
            spent / np.tile(self.flops, count),
            1.0,
            experts=experts,
            granularity=granularity,
            total=np.tile(self.total, count),
            flops=spent,
            family=self.family,
        )


def every_width(shape: ModelShape, families: Sequence[str], low: int, high: int, vocab_size: int) -> list[int]:
    """The even widths from ``low`` to ``high`` at which the shape makes a model of every family.

    Raises:
        ValueError: if there is none.
    """
    found = [dim for dim in range(low + low % 2, high + 1, 2) if _makes(shape, families, dim, vocab_size)]
    require(len(found) > 0, "dims", f"{low} to {high}", "a range with a width that the shape can be built at")
    return found


def _makes(shape: ModelShape, families: Sequence[str], dim: int, vocab_size: int) -> bool:
    try:
        for family in families:
            shape.decoder(family, dim, vocab_size)
    except ValueError:
        return False
    return True


def by_family(
    shape: ModelShape, families: Sequence[str], dims: Sequence[int], vocab_size: int, context: int
) -> Mapping[str, Widths]:
    """:class:`Widths` of each family."""
    return {family: Widths.of(shape, family, dims, vocab_size, context) for family in families}
