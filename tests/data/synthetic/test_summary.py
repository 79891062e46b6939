"""The whole context decides: one marked bit less and the parity is a coin."""

from __future__ import annotations

from collections import Counter

import pytest

from toolkit.data.synthetic import FirstTokenRecall, GlobalSummary


def marked_bits(tokens: list[int]) -> list[int]:
    return [tokens[place + 1] for place, token in enumerate(tokens) if token == 3]


@pytest.mark.parametrize("unseen", [0, 3])
def test_parity_is_a_coin_to_whoever_misses_one_bit(unseen: int) -> None:
    rows = 3000
    batch = GlobalSummary(length=24, marks=4, fillers=2).sample(rows, 0)
    seen: Counter[tuple[int, ...]] = Counter()
    for tokens, label in zip(batch.input_ids.tolist(), batch.labels[:, -1].tolist(), strict=True):
        bits = marked_bits(tokens)
        del bits[unseen]
        seen[(*bits, label)] += 1
    assert len(seen) == 16
    for count in seen.values():
        assert abs(count - rows / 16) < 5 * (rows / 16) ** 0.5


def test_every_count_is_equally_likely_and_in_meta() -> None:
    rows = 3000
    batch = GlobalSummary(length=24, marks=4, kind="count", fillers=2).sample(rows, 0)
    ones = batch.meta["ones"].tolist()
    assert ones == [marked_bits(tokens).count(1) for tokens in batch.input_ids.tolist()]
    assert batch.labels[:, -1].tolist() == [4 + 2 + one for one in ones]
    counts = Counter(ones)
    assert set(counts) == set(range(5))
    for count in counts.values():
        assert abs(count - rows / 5) < 5 * (rows * 4 / 25) ** 0.5


def test_marked_bits_are_everywhere() -> None:
    batch = GlobalSummary(length=14, marks=3, fillers=2).sample(500, 0)
    assert {place for tokens in batch.input_ids.tolist() for place, one in enumerate(tokens) if one == 3} == set(
        range(12)
    )


def test_the_first_token_is_asked_at_the_last_position() -> None:
    batch = FirstTokenRecall(length=9, symbols=4).sample(20, 0)
    assert (batch.input_ids[:, -1] == 0).all()
    assert (batch.labels[:, -1] == batch.input_ids[:, 0]).all()
    assert batch.meta["gap"].tolist() == [8] * 20


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"length": 12}, "length=12.*3 marks . 1 = 13"),
        ({"marks": 0}, "marks=0"),
        ({"kind": "mean"}, "kind='mean'.*'parity', 'count'"),
        ({"fillers": 0}, "fillers=0"),
    ],
)
def test_a_bad_summary_is_refused_by_name(settings: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        GlobalSummary(**{"length": 24, "marks": 4, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(("settings", "match"), [({"length": 1}, "length=1"), ({"symbols": 1}, "symbols=1")])
def test_a_bad_recall_is_refused_by_name(settings: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FirstTokenRecall(**settings)
