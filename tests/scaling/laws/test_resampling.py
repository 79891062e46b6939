"""Resamples: whole groups, as many as there are, each as likely as the others."""

from __future__ import annotations

import numpy as np

from toolkit.scaling.laws.resampling import resampled, resampled_within

GROUP = np.array(["b", "a", "b", "c", "d", "a"])
FAMILY = np.array(["x", "x", "x", "x", "y", "y"])


def test_a_group_is_drawn_whole_and_as_many_are_drawn_as_there_are() -> None:
    weights = resampled(GROUP, 4000, np.random.default_rng(0))
    assert weights.shape == (4000, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 5])
    np.testing.assert_array_equal(weights[:, [0, 1, 3, 4]].sum(axis=1), 4)
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.05)
    assert abs((weights[:, 3] == 0).mean() - (3 / 4) ** 4) < 0.03  # left out of all four draws


def test_within_families_each_keeps_its_number_of_groups() -> None:
    """The label "a" stands for one group in each of the two families."""
    weights = resampled_within(FAMILY, GROUP, 500, np.random.default_rng(0))
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)
    np.testing.assert_array_equal(weights[:, [4, 5]].sum(axis=1), 2)
    assert (weights[:, 1] != weights[:, 5]).any()
