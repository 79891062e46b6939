"""Sizes and costs over widths are those of the models themselves."""

from __future__ import annotations

import numpy as np
import pytest
from sparsity_cases import CONTEXT, SHAPE, VOCAB, law_rows

from toolkit.compute import measure
from toolkit.models import Decoder
from toolkit.scaling.laws import runs_of
from toolkit.scaling.plan import Family, ModelShape
from toolkit.scaling.sparsity.widths import Widths, architecture, by_family, every_width

UNTIED = ModelShape((Family("dense"), Family("fine", 15, 3, shared_experts=1)), layers=1, head_dim=8, tied_head=False)


@pytest.mark.parametrize("shape", [SHAPE, UNTIED], ids=["tied", "untied"])
def test_sizes_are_those_of_the_models_parameters(shape: ModelShape) -> None:
    for family in shape.families:
        widths, arm = Widths.of(shape, family, (16, 8, 24), VOCAB, CONTEXT), shape.family(family)
        assert widths.dims == (8, 16, 24)
        for at, dim in enumerate(widths.dims):
            model = Decoder(shape.decoder(family, dim, VOCAB))
            sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
            looked_up = 0 if shape.tied_head else VOCAB * dim  # the embedding, where it is no product's matrix
            routed = sum(size for name, size in sizes.items() if ".experts." in name and "shared" not in name)
            idle = routed * (1 - arm.top_k / arm.num_experts) if arm.num_experts else 0
            assert (routed > 0) == (family != "dense")
            assert widths.total[at] == sum(sizes.values()) - looked_up
            assert widths.active[at] == pytest.approx(sum(sizes.values()) - looked_up - idle)


def test_flops_are_those_that_training_computes() -> None:
    for family, widths in by_family(SHAPE, SHAPE.families, (8, 24), VOCAB, CONTEXT).items():
        for dim, flops in zip(widths.dims, widths.flops, strict=True):
            measured = measure(Decoder(SHAPE.decoder(family, dim, VOCAB)), CONTEXT)
            assert flops == pytest.approx(measured.training_flops, rel=1e-9)


def test_every_run_spends_its_budget() -> None:
    widths = Widths.of(SHAPE, "moe", (8, 16, 24), VOCAB, CONTEXT)
    runs = widths.runs(np.array([1e9, 4e9]))
    np.testing.assert_allclose(runs.tokens * np.tile(widths.flops, 2), [1e9] * 3 + [4e9] * 3)
    np.testing.assert_array_equal(runs.flops, [1e9] * 3 + [4e9] * 3)
    np.testing.assert_array_equal(runs.active, [*widths.active, *widths.active])
    assert runs.families == ("moe",)


def test_a_grids_rows_and_the_widths_are_in_one_unit() -> None:
    rows = runs_of(law_rows(budgets=(1e10,)), architecture(SHAPE))
    for family, widths in by_family(SHAPE, SHAPE.families, (8, 16, 24, 32), VOCAB, CONTEXT).items():
        mine, counted = rows.where(rows.family == family), widths.runs(np.array([1e10]))
        for column in ("active", "total", "experts", "granularity", "flops"):
            np.testing.assert_array_equal(getattr(mine, column), getattr(counted, column))
        np.testing.assert_allclose(mine.tokens, counted.tokens, atol=0.5)


def test_expansion_is_all_experts_over_a_tokens_and_granularity_how_many_those_are() -> None:
    shape = ModelShape((Family("dense"), Family("moe", 8, 2), Family("fine", 31, 7, shared_experts=1)))
    assert architecture(shape) == {"dense": (1.0, 1.0), "moe": (4.0, 2.0), "fine": (4.0, 8.0)}
    for name, (expansion, granularity) in architecture(shape).items():
        hidden = shape.decoder(name, 64, VOCAB).blocks[0].feed_forward
        if name != "dense":
            assert hidden.hidden_dim * granularity == 4 * 64
            assert expansion * granularity == hidden.num_experts + hidden.shared_experts  # type: ignore[union-attr]


def test_every_width_is_every_even_one_that_can_be_built() -> None:
    shape = ModelShape(head_dim=8, queries_per_kv_head=2)
    found = every_width(shape, shape.families, 8, 48, VOCAB)
    for dim in range(8, 49):
        heads = max(1, dim // 8)
        assert (dim in found) == (dim % (2 * heads) == 0 and heads % 2 == 0)
    with pytest.raises(ValueError, match="dims='9 to 11': it must be a range with a width"):
        every_width(shape, shape.families, 9, 11, VOCAB)


def test_no_width_or_one_that_the_shape_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="dims="):
        Widths.of(SHAPE, "dense", (), VOCAB, CONTEXT)
    with pytest.raises(ValueError, match="dims=15: it must be a multiple of 2"):
        Widths.of(SHAPE, "dense", (15,), VOCAB, CONTEXT)
