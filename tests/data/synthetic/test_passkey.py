"""The key is where the depth says, and digits outside it are as frequent as chance has them."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.data.synthetic import Passkey


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (0.5, 20), (1.0, 40)])
def test_the_key_is_at_its_depth(depth: float, place: int) -> None:
    task = Passkey(length=48, depth=depth, digits=3)
    assert task.length - (2 * 3 + 2) == 40
    batch = task.sample(5, 0)
    for tokens in batch.input_ids.tolist():
        assert tokens.index(10) == place
        assert tokens.index(11) == place + 4
        assert tokens.index(12) == 45
    assert batch.meta["depth"].tolist() == [depth] * 5
    assert batch.meta["gap"].tolist() == [45 - (place + 1)] * 5


def test_without_a_depth_every_place_is_drawn() -> None:
    batch = Passkey(length=16, digits=2).sample(400, 0)
    assert {tokens.index(10) for tokens in batch.input_ids.tolist()} == set(range(11))
    assert batch.meta["depth"].min() == 0
    assert batch.meta["depth"].max() == 1


def test_filler_is_half_a_cycle_and_half_digits() -> None:
    batch = Passkey(length=60, depth=1.0, digits=3, words=4).sample(50, 0)
    for tokens in batch.input_ids.numpy():
        filler = tokens[:52]
        words = np.flatnonzero(filler >= 13)
        assert len(words) == 26
        assert len(set((filler[words] - 13 - words) % 4)) == 1
        assert (filler[filler < 13] < 10).all()


def test_an_answer_is_all_digits() -> None:
    assert Passkey(digits=5).answer_chance == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"length": 11}, "length=11.*at least 2 digits . 2 = 12"),
        ({"depth": 1.5}, "depth=1.5.*between 0 and 1"),
        ({"digits": 0}, "digits=0"),
        ({"words": 0}, "words=0"),
    ],
)
def test_a_bad_setting_is_refused_by_name(settings: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Passkey(**{"length": 40, **settings})  # type: ignore[arg-type]


def test_the_shortest_is_all_key_and_question() -> None:
    batch = Passkey(length=12).sample(2, 0)
    assert batch.meta["depth"].tolist() == [0, 0]
