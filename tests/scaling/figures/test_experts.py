"""What experts take: the commonest tokens, the kinds of all of them, and pairs where there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from png import check

from toolkit.data import ByteTokenizer
from toolkit.scaling.figures.experts import (
    DOUBLINGS,
    NEVER,
    bars_of_classes,
    commonest,
    doublings,
    paired_layers,
    plot_classes,
    plot_co_selection,
    plot_specialisation,
)
from toolkit.scaling.specialisation import LayerSpecialisation
from toolkit.scaling.token_classes import token_classes, token_label

LABELS = [token_label(chr(byte)) for byte in range(256)]
CLASSES = token_classes(ByteTokenizer())


def layer(top_k: int, experts: int = 6) -> LayerSpecialisation:
    """Random choices by 3000 printable bytes, dollars among them."""
    rng = np.random.default_rng(0)
    ids = rng.integers(32, 127, size=3000)
    chosen = rng.random((3000, experts)).argsort(1) < top_k
    counts = np.zeros((experts, 256), dtype=np.int64)
    np.add.at(counts.T, ids, chosen)
    return LayerSpecialisation(counts, np.bincount(ids, minlength=256), chosen.T.astype(int) @ chosen.astype(int))


def test_figures_of_a_run(tmp_path: Path) -> None:
    layers = {"layer0": layer(2), "layer1": layer(2, experts=4)}
    figures = [
        plot_specialisation(layers, LABELS, tmp_path / "tokens.png", "run7"),
        plot_classes(layers, CLASSES, tmp_path / "kinds.png", "run7"),
        plot_co_selection(layers, tmp_path / "pairs.png", "run7"),
    ]
    for figure in figures:
        check(figure)
        assert "`run7`" in figure.caption
        assert figure.runs == ("run7",)
    for figure in (figures[0], figures[2]):
        assert "grey: never, among 3,000 tokens" in figure.caption


def test_one_expert_a_token_makes_no_pairs(tmp_path: Path) -> None:
    layers = {"single": layer(1), "double": layer(2)}
    assert list(paired_layers(layers)) == ["double"]
    with pytest.raises(ValueError, match="two experts"):
        plot_co_selection({"single": layer(1)}, tmp_path / "pairs.png", "run")


def test_the_commonest_tokens_in_order() -> None:
    found = commonest(layer(1), 10)
    seen = layer(1).occurrences
    assert sorted(seen.tolist(), reverse=True)[:10] == [seen[token] for token in found]
    assert len(commonest(layer(1), 256)) == (seen > 0).sum()  # none that does not occur


def test_doublings() -> None:
    lift = np.array([1.0, 4.0, 0.5, 0.0, np.nan, 2**-20, 2**20])
    np.testing.assert_array_equal(doublings(lift), [0, 2, -1, NEVER, np.nan, -DOUBLINGS, DOUBLINGS])
    assert NEVER < -DOUBLINGS


def test_kinds_add_up_to_the_whole() -> None:
    bars, shares = bars_of_classes(layer(2), CLASSES)
    assert bars == ["text", *"012345"]
    np.testing.assert_allclose(sum(shares.values()), 1)
    assert "newline" not in shares  # no token is one
    dead = LayerSpecialisation(np.array([[0, 0], [1, 2]]), np.array([1, 2]), np.diag([0, 3]))
    np.testing.assert_allclose(sum(bars_of_classes(dead, np.array([0, 1]))[1].values()), [1, 0, 1])
