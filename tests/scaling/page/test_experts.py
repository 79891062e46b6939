"""Interactive figures of experts hold the shares that a count by hand gives."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import pytest

from toolkit.scaling.figures.experts import DOUBLINGS, NEVER_COLOUR, doublings
from toolkit.scaling.page.course import expert_load
from toolkit.scaling.page.experts import co_selection, specialisation, token_kinds
from toolkit.scaling.specialisation import LayerSpecialisation
from toolkit.scaling.token_classes import CLASSES

# Two experts of each token. Id 0 occurs 6 times and always goes to 0 and 1; id 1 twice, to 1 and 2.
LAYER = LayerSpecialisation(
    np.array([[6, 0, 0], [6, 2, 0], [0, 2, 0]]), np.array([6, 2, 0]), np.array([[6, 6, 0], [6, 8, 2], [0, 2, 2]])
)
LABELS = ["a", "' '", "never"]


def colour_at(trace: go.Heatmap, z: float) -> str | None:
    """The colour of a value within a stretch of one colour; None in a stretch that changes."""
    place = (z - trace.zmin) / (trace.zmax - trace.zmin)
    for (left, colour), (right, other) in pairwise(trace.colorscale):
        if left <= place < right:
            return str(colour) if colour == other else None
    return None


def test_never_has_a_colour_that_seldom_has_not() -> None:
    [trace] = specialisation({"layer0": LAYER}, LABELS).data
    assert colour_at(trace, doublings(np.array([0.0]))[0]) == NEVER_COLOUR
    for lift in (2**-30, 2**-DOUBLINGS, 2**-2, 1, 2**DOUBLINGS):
        assert colour_at(trace, doublings(np.array([lift]))[0]) is None
    assert "never" in trace.colorbar.ticktext


def test_labels_are_text() -> None:
    """Plotly reads tags in what it is given."""
    figure = specialisation({"<b>layer": LAYER}, ["<a href='https://x.y'>", "&amp;", "x"])
    assert list(figure.layout.xaxis.ticktext) == ["&lt;a href='https://x.y'&gt;", "&amp;amp;"]
    assert figure.layout.annotations[0].text.startswith("&lt;b&gt;layer")


def test_experts_count_from_the_top_in_every_figure() -> None:
    shares = np.full((2, 3), 1 / 3)
    figures = [
        specialisation({"layer0": LAYER}, LABELS),
        token_kinds({"layer0": LAYER}, np.zeros(3, dtype=int)),
        co_selection({"layer0": LAYER}),
        expert_load({"layer0": shares}, np.array([1.0, 2.0]), "run"),
    ]
    assert {axis.autorange for figure in figures for axis in figure.select_yaxes()} == {"reversed"}


def test_tokens_by_expert() -> None:
    [trace] = specialisation({"layer0": LAYER}, LABELS).data
    np.testing.assert_allclose(trace.customdata, [[1, 0], [1, 1], [0, 1]])  # the share of the id's tokens
    assert trace.z[0][0] == pytest.approx(np.log2(6 * 16 / (6 * 12)), abs=1e-3)  # P(expert 0 | a) / P(expert 0)
    assert colour_at(trace, trace.z[0][1]) == NEVER_COLOUR
    axis = specialisation({"layer0": LAYER}, LABELS).layout.xaxis
    assert list(axis.ticktext) == ["a", "' '"]  # the commonest first; what does not occur is no column


def test_kinds_by_expert() -> None:
    classes = np.array([CLASSES.index(kind) for kind in ("letter", "space", "digit")])
    letters, spaces = token_kinds({"layer0": LAYER}, classes).data
    assert (letters.name, spaces.name) == ("letter", "space")
    np.testing.assert_allclose(letters.x, [0.75, 1, 0.75, 0])
    np.testing.assert_allclose(spaces.x, [0.25, 0, 0.25, 1])
    assert list(letters.y) == ["text", "0", "1", "2"]


def test_pairs() -> None:
    single = LayerSpecialisation(np.eye(2, dtype=int), np.ones(2, dtype=int), np.eye(2, dtype=int))
    figure = co_selection({"layer0": LAYER, "layer1": single})
    [trace] = figure.data  # a layer of one expert a token has none
    np.testing.assert_allclose(trace.customdata, np.array([[0, 6, 0], [6, 0, 2], [0, 2, 0]]) / 8)
    assert [annotation.text for annotation in figure.layout.annotations] == ["layer0"]


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="layers"):
        specialisation({}, LABELS)
    with pytest.raises(ValueError, match="layers"):
        token_kinds({}, np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="layers"):
        co_selection({})
