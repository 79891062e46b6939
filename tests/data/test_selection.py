"""Laws of dropping repeats and of the split."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data.documents import Document, Dropped
from toolkit.data.selection import content_hash, drop_repeats, position, split

NAMES = st.lists(st.text(min_size=1), min_size=20, max_size=60, unique=True)


def named(names: list[str]) -> list[Document]:
    return [Document(name, f"text {name}") for name in names]


def test_content_is_told_apart_up_to_whitespace_and_case() -> None:
    same = ["If x:\n\treturn  1\n", "if x:\r\n    return 1", "  IF X: RETURN 1  "]
    assert len({content_hash(text) for text in same}) == 1
    other = ["if x: return 2", "if x: return1", "if x: return 1 #", ""]
    assert len({content_hash(text) for text in [same[0], *other]}) == 5


def test_the_first_name_is_kept_and_each_repeat_names_it() -> None:
    texts = {"c": "Same text", "a": "same\ntext", "b": "other", "d": "same text", "e": " \n\t", "f": ""}
    kept, dropped = drop_repeats([Document(name, text) for name, text in texts.items()])
    assert [document.name for document in kept] == ["a", "b"]
    assert dropped == [
        Dropped("c", "repeats another", "a"),
        Dropped("d", "repeats another", "a"),
        Dropped("e", "empty"),
        Dropped("f", "empty"),
    ]


@given(st.lists(st.sampled_from(["a", "A", "b", " b", "c", "", " "]), max_size=12), st.randoms())
def test_every_document_is_kept_or_dropped_whatever_the_order(texts: list[str], random: object) -> None:
    documents = [Document(f"{place:02d}", text) for place, text in enumerate(texts)]
    kept, dropped = drop_repeats(documents)
    names = [one.name for one in kept] + [one.name for one in dropped]
    assert sorted(names) == [document.name for document in documents]
    assert len(kept) == len({text.lower().strip() for text in texts} - {""})
    random.shuffle(documents)  # type: ignore[attr-defined]
    assert drop_repeats(documents) == (kept, dropped)


@given(NAMES, st.floats(0.05, 0.95))
def test_the_split_parts_the_documents_and_adding_some_moves_none(names: list[str], share: float) -> None:
    few, many = named(names[:10]), named(names)
    places = [position(document.name) for document in few]
    if not min(places) < share <= max(places):
        with pytest.raises(ValueError, match=r"validation_share=.*above .* and at most"):
            split(few, share)
        return
    train, validation = split(few, share)
    assert sorted(train + validation, key=few.index) == few
    more_train, more_validation = split(many, share)
    assert set(train) <= set(more_train)
    assert set(validation) <= set(more_validation)


def test_the_share_is_what_is_held_out_on_average() -> None:
    _, validation = split(named([f"file {number}" for number in range(10_000)]), 0.1)
    assert abs(len(validation) - 1000) < 4 * math.sqrt(10_000 * 0.1 * 0.9)


def test_the_shares_that_the_error_names_are_right() -> None:
    documents = named(["a", "b", "c"])
    low, high = (extreme(position(name) for name in "abc") for extreme in (min, max))
    for share in (low, math.nextafter(high, 1)):
        with pytest.raises(ValueError, match=rf"above {low} and at most {high}"):
            split(documents, share)
    assert len(split(documents, math.nextafter(low, 1))[1]) == 1
    assert len(split(documents, high)[0]) == 1


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan])
def test_a_share_outside_zero_and_one_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"validation_share=.*between 0 and 1"):
        split(named(["a", "b"]), share)


def test_one_document_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"validation_share=.*two documents.*several files"):
        split(named(["a"]), 0.5)
