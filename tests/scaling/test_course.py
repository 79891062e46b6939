"""The course of routing read back: of the right tags, over layers, and of the later record where there are two."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from toolkit.scaling.course import RouterCourse, router_course


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of two layers, recorded at steps 1, 10 and 20, cut off after 20 and gone on with from 10."""
    with SummaryWriter(tmp_path) as writer:
        for step in (1, 10, 20):
            for layer, plus in (("layer0", 0.0), ("layer1", 1.0)):
                writer.add_scalar(f"router/{layer}/max_violation", step + plus, step, walltime=step)
                writer.add_scalar(f"router/{layer}/load/expert0", 99.0, step, walltime=step)
            writer.add_scalar("train/loss", 99.0, step, walltime=step)
    with SummaryWriter(tmp_path, filename_suffix=".later") as writer:
        writer.add_scalar("router/layer0/max_violation", 100.0, 20, walltime=100)
        writer.add_scalar("router/layer1/max_violation", 102.0, 20, walltime=100)
        writer.add_scalar("router/layer1/dropped_share", 0.25, 20, walltime=100)
    return tmp_path


def test_curves_are_means_over_layers_and_the_later_record_counts(folder: Path) -> None:
    course = router_course(folder)
    assert course.curves == {"max_violation": {1: 1.5, 10: 10.5, 20: 101.0}, "dropped_share": {20: 0.25}}


@pytest.mark.parametrize(("step", "value"), [(0, 1.5), (5, 1.5), (6, 10.5), (14.9, 10.5), (15.1, 101.0), (1e9, 101.0)])
def test_a_value_is_that_of_the_nearest_record(folder: Path, step: float, value: float) -> None:
    assert router_course(folder).at("max_violation", step) == value


def test_what_was_not_recorded_is_nan(folder: Path) -> None:
    assert math.isnan(router_course(folder).at("token_entropy", 10))
    assert router_course(folder / "nowhere").curves == RouterCourse({}).curves == {}
