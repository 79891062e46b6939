"""Interactive figures of experts hold the shares that a count by hand gives."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.scaling.page.experts import co_selection, specialisation, token_kinds
from toolkit.scaling.specialisation import LayerSpecialisation
from toolkit.scaling.token_classes import CLASSES

# Two experts of each token. Id 0 occurs 6 times and always goes to 0 and 1; id 1 twice, to 1 and 2.
LAYER = LayerSpecialisation(
    np.array([[6, 0, 0], [6, 2, 0], [0, 2, 0]]), np.array([6, 2, 0]), np.array([[6, 6, 0], [6, 8, 2], [0, 2, 2]])
)
LABELS = ["a", "' '", "never"]


def test_tokens_by_expert() -> None:
    [trace] = specialisation({"layer0": LAYER}, LABELS).data
    np.testing.assert_allclose(trace.customdata, [[1, 0], [1, 1], [0, 1]])  # the share of the id's tokens
    assert trace.z[0][0] == pytest.approx(np.log2(6 * 16 / (6 * 12)), abs=1e-3)  # P(expert 0 | a) / P(expert 0)
    assert trace.z[0][1] == trace.zmin  # never
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
