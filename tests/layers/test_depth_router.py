"""Which tokens are computed: a brute-force top C in training, the predictor's word in evaluation."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from toolkit.layers.depth_router import DepthRouter


@settings(max_examples=60)
@given(st.integers(1, 200), st.integers(1, 100))
def test_the_count_is_the_ceiling_of_the_decimal_share(length: int, percent: int) -> None:
    router = DepthRouter(4, capacity=percent / 100)
    assert router.count(length) == math.ceil(Fraction(percent, 100) * length)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 30), st.sampled_from([0.05, 0.125, 0.5, 1.0]))
def test_training_chooses_each_sequences_highest_in_the_order_they_stand(
    batch: int, length: int, capacity: float
) -> None:
    router, x = DepthRouter(6, capacity), torch.randn(batch, length, 6)
    with torch.no_grad():
        choice = router(x)
    assert choice.valid is None
    for row in range(batch):
        scores = [float((x[row, t] * router.weight[0]).sum().detach()) for t in range(length)]
        count = math.ceil(capacity * length)
        expected = sorted(sorted(range(length), key=lambda t: -scores[t])[:count])
        assert choice.index[row].tolist() == expected
        assert [t for t in range(length) if choice.selected[row, t]] == expected
        assert choice.weight[row].tolist() == pytest.approx(scores, abs=1e-5)


@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(1, 20), st.floats(-3, 3))
def test_evaluation_chooses_what_the_predictor_names_and_pads_the_rest(batch: int, length: int, shift: float) -> None:
    router, x = DepthRouter(6).eval(), torch.randn(batch, length, 6)
    with torch.no_grad():
        router.predictor_down_bias.fill_(shift)
    choice = router(x)
    hidden = F.silu(x @ router.predictor_up.T + router.predictor_up_bias)
    named = torch.sigmoid(hidden @ router.predictor_down.T + router.predictor_down_bias)[..., 0] > 0.5
    assert torch.equal(choice.selected, named)
    assert choice.index.shape == (batch, int(named.sum(1).max()))
    valid = torch.ones_like(choice.index, dtype=torch.bool) if choice.valid is None else choice.valid
    for row in range(batch):
        expected = [t for t in range(length) if named[row, t]]
        assert choice.index[row][valid[row]].tolist() == expected
        assert choice.index[row][: len(expected)].tolist() == expected  # padding comes last
        assert len(set(choice.index[row].tolist())) == choice.index.shape[1]  # and is no token twice
    assert choice.losses == {}


def test_the_loss_is_binary_cross_entropy_with_what_was_chosen() -> None:
    router, x = DepthRouter(6, 0.25, coefficient=0.3), torch.randn(3, 12, 6)
    choice, total = router(x), 0.0
    for row in range(3):
        for t in range(12):
            p = 1 / (1 + math.exp(-float(choice.prediction[row, t].detach())))
            total -= math.log(p if t in choice.index[row].tolist() else 1 - p)
    assert float(choice.losses["depth"].detach()) == pytest.approx(0.3 * total / 36, rel=1e-5)


def test_the_loss_reaches_the_predictor_and_nothing_else() -> None:
    router, x = DepthRouter(6, 0.25), torch.randn(3, 12, 6, requires_grad=True)
    router(x).losses["depth"].backward()
    assert x.grad is None
    assert router.weight.grad is None
    for name, parameter in router.named_parameters():
        if name != "weight":
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_the_predictor_learns_what_the_whole_sequence_decides() -> None:
    router, x = DepthRouter(8, 0.25), torch.randn(16, 64, 8)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        router(x).losses["depth"].backward()
        optimizer.step()
    unseen = torch.randn(16, 64, 8)
    said, truth = router.eval()(unseen).selected, router.train()(unseen).selected
    assert float((said == truth).float().mean()) > 0.9  # saying "no" to all would be right for 0.75


def test_autocast_changes_no_score() -> None:
    router, x = DepthRouter(16, 0.5), torch.randn(2, 40, 16)
    plain = router(x)
    with torch.autocast("cpu", torch.bfloat16):
        other = router(x)
    assert torch.equal(plain.weight, other.weight)
    assert torch.equal(plain.prediction, other.prediction)
    assert torch.equal(plain.losses["depth"], other.losses["depth"])
    low = router.bfloat16()(x.bfloat16())
    assert low.weight.dtype == low.prediction.dtype == torch.float32


@pytest.mark.parametrize("capacity", [0.125, 0.5, 1.0])
def test_the_prediction_starts_around_the_capacity(capacity: float) -> None:
    router = DepthRouter(8, capacity)
    with torch.no_grad():
        p = torch.sigmoid(router.predict(torch.zeros(1, 1, 8)))
    assert float(p) == pytest.approx(min(capacity, 0.99), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dim": 0}, "dim=0"),
        ({"capacity": 0.0}, "capacity=0.0: it must be above 0 and at most 1"),
        ({"capacity": 1.5}, "capacity=1.5"),
        ({"predictor_dim": 0}, "predictor_dim=0"),
        ({"coefficient": -1.0}, "coefficient=-1.0"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}"):
        DepthRouter(**{"dim": 8, **settings})  # type: ignore[arg-type]
