"""Counts follow the zeta law, noise is first, and what is asked has one answer."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from toolkit.data.synthetic import FrequentWords


@pytest.mark.parametrize(("alpha", "zeta"), [(2.0, 1.6449340668), (4.0, 1.0823232337)])
def test_counts_are_those_of_the_law(alpha: float, zeta: float) -> None:
    task = FrequentWords(length=4003, alpha=alpha)
    batch = task.sample(3, 0)
    law = [int(4000 / zeta / rank**alpha) for rank in range(2, 2000)]
    law = [count for count in law if count]
    for row, tokens in enumerate(batch.input_ids.tolist()):
        counts = Counter(tokens[:4000])
        assert counts[0] == 4000 - sum(law)
        assert counts[0] > law[0]
        del counts[0]
        assert sorted(counts.values(), reverse=True) == law
        assert [counts[label] for label in batch.labels[row, -3:].tolist()] == batch.meta["count"][row].tolist()
    assert batch.meta["rank"].tolist() == [[2, 3, 4]] * 3


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"length": 20}, "length=20.*ranks 2 to 5 to occur differently often"),
        ({"length": 3}, "length=3.*top=3"),
        ({"alpha": 1.0}, "alpha=1.0.*above 1"),
        ({"words": 3}, "words=3.*that occur"),
        ({"top": 0}, "top=0"),
    ],
)
def test_a_bad_setting_is_refused_by_name(settings: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FrequentWords(**{"length": 128, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("length", range(4, 400, 7))
def test_whatever_is_accepted_has_one_answer(length: int) -> None:
    try:
        task = FrequentWords(length=length)
    except ValueError:
        return
    tokens = task.sample(1, 0).input_ids[0].tolist()
    counts = [count for _, count in Counter(tokens[: length - 3]).most_common()] + [0]
    assert all(a > b for a, b in itertools.pairwise(counts[:5]))
