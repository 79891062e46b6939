"""The key's two places are exactly as far apart as was asked, and nothing but the asked value tells it."""

from __future__ import annotations

from collections import Counter

import pytest

from toolkit.data.synthetic import SparseInduction


def kinds(task: SparseInduction, tokens: list[int]) -> str:
    return "".join("k" if one < task.keys else "v" if one < task.keys + task.values else "." for one in tokens)


@pytest.mark.parametrize("distance", [2, 3, 17, 30, 31])
@pytest.mark.parametrize("questions", [1, 3])
def test_the_last_distance_is_exact_and_pairs_do_not_overlap(distance: int, questions: int) -> None:
    task = SparseInduction(length=32, distance=distance, pairs=4, questions=questions, keys=5, values=3, fillers=2)
    batch = task.sample(60, 0)
    for row, tokens in enumerate(batch.input_ids.tolist()):
        assert [place for place, token in enumerate(tokens) if token == tokens[-1]] == [31 - distance, 31]
        assert batch.labels[row, -1] == tokens[32 - distance]
        assert kinds(task, tokens).count("kv") == kinds(task, tokens).count("v") == 4
        assert kinds(task, tokens).count("k") == 4 + questions
        for place, apart in zip(batch.asked[row].tolist(), batch.meta["distance"][row].tolist(), strict=True):
            assert tokens.index(tokens[place]) == place - apart
            assert batch.labels[row, place] == tokens[place - apart + 1]
    assert batch.meta["distance"][:, -1].tolist() == [distance] * 60


@pytest.mark.parametrize("distance", range(2, 12))
@pytest.mark.parametrize(("pairs", "questions", "length"), [(5, 1, 12), (3, 3, 12), (4, 2, 12)])
def test_the_tightest_fit_is_found(distance: int, pairs: int, questions: int, length: int) -> None:
    task = SparseInduction(length, distance, pairs, questions)
    lengths = [kinds(task, tokens).count("kv") for tokens in task.sample(10, 0).input_ids.tolist()]
    assert lengths == [pairs] * 10


def test_a_range_draws_every_distance_equally_often() -> None:
    rows = 3000
    batch = SparseInduction(length=24, distance=(4, 9), pairs=3, questions=2).sample(rows, 0)
    counts = Counter(batch.meta["distance"][:, -1].tolist())
    assert set(counts) == set(range(4, 10))
    for count in counts.values():
        assert abs(count - rows / 6) < 5 * (rows * 5 / 36) ** 0.5


def test_the_asked_value_is_independent_of_the_others() -> None:
    """Given the values of the other pairs, every value is asked equally often: also one of theirs."""
    rows = 4000
    task = SparseInduction(length=16, distance=8, pairs=2, keys=2, values=4, fillers=1)
    batch = task.sample(rows, 0)
    seen: Counter[tuple[int, int]] = Counter()
    for tokens, label in zip(batch.input_ids.tolist(), batch.labels[:, -1].tolist(), strict=True):
        (other,) = [one for place, one in enumerate(tokens) if 2 <= one < 6 and place != 8]
        seen[other, label] += 1
    assert len(seen) == 16
    for count in seen.values():
        assert abs(count - rows / 16) < 5 * (rows / 16) ** 0.5


def test_the_other_pairs_are_everywhere() -> None:
    task = SparseInduction(length=16, distance=8, pairs=2, keys=4, values=4, fillers=1)
    starts = {
        kinds(task, tokens).replace("kv", "KV", 1).find("kv") for tokens in task.sample(400, 0).input_ids.tolist()
    }
    firsts = {kinds(task, tokens).find("kv") for tokens in task.sample(400, 0).input_ids.tolist()}
    assert starts | firsts == set(range(14)) - {6, 8}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"distance": 1}, "distance=1.*between 2 and length - 1 = 15"),
        ({"distance": (9, 4)}, r"distance=\(9, 4\)"),
        ({"distance": 2.5}, "distance=2.5"),
        ({"length": 9}, "length=9.*2 pairs . questions . 1 = 10"),
        ({"keys": 3}, "keys=3.*pairs=4"),
        ({"values": 1}, "values=1"),
        ({"fillers": 0}, "fillers=0"),
        ({"pairs": 0}, "pairs=0"),
        ({"questions": 5}, "questions=5.*from 1 to pairs=4"),
        ({"questions": 0}, "questions=0"),
    ],
)
def test_a_bad_setting_is_refused_by_name(settings: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SparseInduction(**{"length": 16, "distance": 4, "pairs": 4, **settings})  # type: ignore[arg-type]


def test_a_list_is_a_range_too() -> None:
    listed = SparseInduction(length=16, distance=[2, 5])  # type: ignore[arg-type]
    assert listed == SparseInduction(length=16, distance=(2, 5))
