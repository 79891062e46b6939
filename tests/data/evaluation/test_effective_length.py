"""NoLiMa's rule on its published table, and at the edges."""

from __future__ import annotations

import math

import pytest

from toolkit.data.evaluation import effective_length

# Scores at 1K, 2K, 4K, 8K, 16K, 32K, the base score and the effective length published in NoLiMa's README.
PUBLISHED = {
    "GPT-4o": (99.3, (98.1, 98.0, 95.7, 89.2, 81.6, 69.7), 8),
    "Llama 3.3 70B": (97.3, (94.2, 87.4, 81.5, 72.1, 59.5, 42.7), 2),
    "Claude 3.5 Sonnet": (87.6, (85.4, 84.0, 77.6, 61.7, 45.7, 29.8), 4),
    "Llama 3.1 8B": (76.7, (65.7, 54.4, 44.1, 31.9, 22.6, 14.2), 1),
    "Command R+": (90.9, (77.0, 73.5, 66.3, 39.5, 21.3, 7.4), 0),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_published_lengths_follow_from_the_published_scores(model: str) -> None:
    base, scores, expected = PUBLISHED[model]
    table = {0: base} | {1024 << place: score for place, score in enumerate(scores)}
    assert effective_length(table, base_lengths=0) == expected * 1024


def test_of_several_base_lengths_the_highest_counts() -> None:
    scores = {1: 0.8, 2: 1.0, 4: 0.86, 8: 0.84}
    assert effective_length(scores, [1, 2]) == 4  # 0.84 < 0.85
    assert effective_length({**scores, 2: 0.9}, [1, 2]) == 8
    assert effective_length(scores, 1) == 8


def test_the_last_length_at_the_threshold_counts_whatever_is_before_it() -> None:
    assert effective_length({1: 1.0, 2: 0.85, 4: 0.5, 8: 0.8}, 1) == 2
    assert effective_length({1: 1.0, 2: 0.5, 4: 0.86}, 1) == 4
    assert effective_length({8: 1.0, 1: 1.0, 4: 0.5, 2: 0.8}, 1, ratio=0.5) == 8
    assert effective_length({1: 1.0, 2: math.nan}, 1) == 1
    assert effective_length({1: 0.7, 2: 1.0}, 2) == 2


@pytest.mark.parametrize(
    ("scores", "base", "ratio", "match"),
    [
        ({1: 1.0}, 2, 0.85, r"base_lengths=2.*\[1\]"),
        ({1: 1.0}, [], 0.85, r"base_lengths=\[\]"),
        ({1: 0.0}, 1, 0.85, "scores=0.0"),
        ({1: 1.0}, 1, 0.0, "ratio=0.0"),
        ({1: 1.0}, 1, 1.1, "ratio=1.1"),
    ],
)
def test_bad_input_is_refused(scores: dict[int, float], base: int | list[int], ratio: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        effective_length(scores, base, ratio)
