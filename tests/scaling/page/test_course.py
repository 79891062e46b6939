"""Interactive curves over training hold the runs' records, to four digits."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.scaling.page.course import balance, expert_load, training
from toolkit.scaling.run_records import BalanceCurve, LossCurve

FLOPS = np.geomspace(1e9, 1e11, 12)
LOSSES = [
    LossCurve("a", "dense", 1e11, FLOPS, FLOPS**-0.1, FLOPS[5::6], FLOPS[5::6] ** -0.05),
    LossCurve("b", "moe", 1e11, FLOPS, FLOPS**-0.11, FLOPS[11:], FLOPS[11:] ** -0.06),
    LossCurve("c", "moe", 1e12, 2 * FLOPS, FLOPS**-0.12, FLOPS[11:], FLOPS[11:] ** -0.07),
]


def test_every_record_of_every_run() -> None:
    figure = training(LOSSES)
    assert len(figure.data) == 2 * len(LOSSES)
    for curve in LOSSES:
        batch, validation = (trace for trace in figure.data if trace.hovertemplate.startswith(f"{curve.run}<"))
        np.testing.assert_allclose(batch.x, curve.flops, rtol=1e-3)
        np.testing.assert_allclose(batch.y, curve.train_loss, rtol=1e-3)
        np.testing.assert_allclose(validation.y, curve.bits_per_byte, rtol=1e-3)
    assert [trace.name for trace in figure.data if trace.showlegend] == ["dense", "moe"]
    strength = {trace.hovertemplate[0]: trace.opacity for trace in figure.data}
    assert strength["c"] > strength["b"]  # the larger budget


def test_balance() -> None:
    share = np.linspace(0, 1, 5)
    curve = BalanceCurve("b", "moe", share, 1 - share, share)
    alone, among = balance([curve]), balance([curve], ["dense"])
    np.testing.assert_allclose(alone.data[0].y, curve.max_violation)
    np.testing.assert_allclose(alone.data[1].y, curve.load_entropy)
    assert alone.data[0].line.color != among.data[0].line.color


def test_white_is_an_even_load() -> None:
    shares = np.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    figure = expert_load({"layer0": shares, "layer1": shares}, np.array([1.0, 10.0]), "run")
    for trace in figure.data:
        np.testing.assert_allclose(trace.z, shares.T)
        [white] = [at for at, colour in trace.colorscale if colour == "#f7f7f7"]
        assert trace.zmin + white * (trace.zmax - trace.zmin) == pytest.approx(0.25)


def test_nothing_is_refused() -> None:
    for plot in (training, balance):
        with pytest.raises(ValueError, match="curves"):
            plot([])
    with pytest.raises(ValueError, match="load"):
        expert_load({}, np.array([]), "run")
