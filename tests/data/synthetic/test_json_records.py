"""The bytes are JSON, the keys differ, and the byte tokenizer reads them back."""

from __future__ import annotations

import json

import pytest

from toolkit.data import ByteTokenizer
from toolkit.data.synthetic import JsonKeyValue


@pytest.mark.parametrize("task", [JsonKeyValue(5, 2, 3), JsonKeyValue(1, 1, 1), JsonKeyValue(16, 1, 6)], ids=str)
def test_the_object_has_every_pair_and_meta_says_where_the_value_is(task: JsonKeyValue) -> None:
    batch = task.sample(20, 0)
    for row, tokens in enumerate(batch.input_ids.tolist()):
        text = ByteTokenizer().decode(tokens)
        assert ByteTokenizer().encode(text).tolist() == tokens
        record = json.loads(text.split("\n")[0])
        assert len(record) == task.pairs
        assert {(len(key), len(value)) for key, value in record.items()} == {(task.key_length, task.value_length)}
        asked = batch.asked[row]
        value = ByteTokenizer().decode(batch.labels[row, asked].tolist())
        source = int(asked[0] - batch.meta["gap"][row])
        assert text[source : source + task.value_length] == value
        assert list(record.values())[round(float(batch.meta["depth"][row]) * max(1, task.pairs - 1))] == value


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"pairs": 17}, "key_length=1.*pairs=17"),
        ({"pairs": 0}, "pairs=0"),
        ({"value_length": 0}, "value_length=0"),
    ],
)
def test_a_bad_setting_is_refused_by_name(settings: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        JsonKeyValue(**{"pairs": 4, "key_length": 1, **settings})
