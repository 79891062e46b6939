"""Laws of the byte tokenizer and of the parts every tokenizer shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data.tokenizer import ByteTokenizer, token_dtype, token_ids

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(TEXT)
def test_text_decodes_to_itself_and_its_bytes_are_counted(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.dtype == np.uint8
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    assert tokenizer.separator not in ids


@given(st.lists(TEXT, max_size=5))
def test_a_batch_is_each_text_encoded(texts: list[str]) -> None:
    tokenizer = ByteTokenizer()
    batch = tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text).tolist() for text in texts]


def test_the_separator_decodes_to_the_byte_it_stands_for_and_bad_utf8_to_the_replacement() -> None:
    assert ByteTokenizer().decode([65, 0, 66, 0xC3]) == "A\0B\ufffd"
    assert ByteTokenizer().decode([]) == ""


def test_a_text_with_the_separator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"text=.*NUL"):
        ByteTokenizer().encode("a\0b")


@pytest.mark.parametrize("ids", [[256], [-1], [0, 999]])
def test_an_id_outside_the_vocabulary_is_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"ids=.*between 0 and vocab_size - 1 = 255"):
        ByteTokenizer().decode(ids)


@pytest.mark.parametrize("ids", [[1.0], [[1]], 3])
def test_ids_that_are_not_a_sequence_of_integers_are_refused(ids: object) -> None:
    with pytest.raises(ValueError, match=r"ids=.*sequence of integers"):
        token_ids(ids, 256)  # type: ignore[arg-type]


@pytest.mark.parametrize("vocab_size", [2, 256, 257, 65_536, 65_537, 200_000])
def test_the_type_is_the_smallest_that_holds_every_id(vocab_size: int) -> None:
    dtype = token_dtype(vocab_size)
    assert np.iinfo(dtype).max >= vocab_size - 1
    assert dtype.itemsize == 1 or np.iinfo(f"uint{4 * dtype.itemsize}").max < vocab_size - 1
