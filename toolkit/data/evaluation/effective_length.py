"""Up to what length a model does nearly as well as it does on short contexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from toolkit.checks import require


def effective_length(scores: Mapping[int, float], base_lengths: int | Sequence[int], ratio: float = 0.85) -> int:
    """The longest length at which a model keeps ``ratio`` of its base score.

    NoLiMa (Modarressi et al., 2025): the base score is that of short contexts, the effective length the longest context
    with at least 0.85 of it. Of several base lengths the highest score counts here, which is the strictest threshold.
    A length between that falls below does not end it: look at the scores where they are noisy.

    Args:
        scores: a score, at least 0, for each length: higher is better.
        base_lengths: the short length, or lengths, of the base score; all in ``scores``.
        ratio: the share to keep, in (0, 1].

    Raises:
        ValueError: there is no score at a base length, the base score is not positive, or the ratio is out of range.

    >>> effective_length({1024: 98.1, 8192: 89.2, 16384: 81.6}, base_lengths=1024)
    8192
    """
    lengths = [base_lengths] if isinstance(base_lengths, int) else list(base_lengths)
    right = f"among the lengths that have a score, {sorted(scores)}"
    require(len(lengths) > 0 and all(length in scores for length in lengths), "base_lengths", base_lengths, right)
    require(0 < ratio <= 1, "ratio", ratio, "above 0 and at most 1")
    base = max(scores[length] for length in lengths)
    require(base > 0, "scores", base, "above 0 at a base length: there is nothing to keep")
    return max(length for length, score in scores.items() if score >= ratio * base)
