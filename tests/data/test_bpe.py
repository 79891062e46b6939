"""Laws of byte-level BPE: exact for any text, the same at each training, and comparable with bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data.bpe import SEPARATOR, BPETokenizer, byte_characters
from toolkit.data.tokenizer import ByteTokenizer

TEXTS = [
    "def low(): return lower + lowest\n",
    "the newest, the widest: naïve 日本 日本\n",
    "for for for\n",
] * 4
TRAINED = BPETokenizer.train(TEXTS, 300)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(ANY_TEXT | st.lists(st.sampled_from([SEPARATOR, " low", "est", "日", "\n", "\0", "<|"])).map("".join))
def test_any_text_decodes_to_itself_without_a_separator(text: str) -> None:
    ids = TRAINED.encode(text)
    assert TRAINED.decode(ids) == text
    assert TRAINED.separator not in ids
    assert TRAINED.byte_lengths[ids].sum() == len(text.encode())


def test_token_bytes_spell_the_same_stream_as_the_byte_tokenizer() -> None:
    text = "the lowest 日本"
    spelled = b"".join(TRAINED.token_bytes[token] for token in TRAINED.encode(text))
    assert spelled == bytes(ByteTokenizer().encode(text).tolist())
    assert len(TRAINED.encode(text)) < len(text.encode())
    separators = [tokenizer.decode([tokenizer.separator]) for tokenizer in (TRAINED, ByteTokenizer())]
    assert separators == ["\0", "\0"]
    assert TRAINED.byte_lengths[TRAINED.separator] == 1


def test_the_vocabulary_is_the_size_asked_for_and_holds_every_byte() -> None:
    assert TRAINED.vocab_size == 300 == len(TRAINED.byte_lengths)
    assert {bytes([byte]) for byte in range(256)} <= set(TRAINED.token_bytes)
    assert len({*TRAINED.token_bytes}) == 299  # the separator and the byte 0 are spelled alike
    assert TRAINED.encode("low").dtype.name == "uint16"


def test_each_byte_has_one_character() -> None:
    assert sorted(byte_characters().values()) == list(range(256))
    assert byte_characters()["A"] == ord("A")
    assert byte_characters()["Ġ"] == ord(" ")  # the well-known mark of a leading space


def test_the_first_merge_is_the_most_frequent_pair() -> None:
    tokenizer = BPETokenizer.train(["zq zq zq zq ab"], 258)
    assert tokenizer.token_bytes[-1] == b"zq"


def test_training_is_the_same_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    TRAINED.save(path)
    code = (
        "import sys, pathlib; from toolkit.data.bpe import BPETokenizer; "
        f"BPETokenizer.train({TEXTS!r}, 300).save(pathlib.Path(sys.argv[1]))"
    )
    other = tmp_path / "other.json"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(other)], check=True, cwd=root)
    assert other.read_bytes() == path.read_bytes()


def test_importing_the_room_needs_neither_the_library_nor_lightning() -> None:
    heavy = {"tokenizers", "lightning", "transformers"}
    code = f"import sys, toolkit.data; sys.exit(bool({heavy} & {{*sys.modules}}))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_loading_gives_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    TRAINED.save(path)
    loaded = BPETokenizer.load(path)
    text = f"the newest {SEPARATOR} 日本"
    assert loaded.encode(text).tolist() == TRAINED.encode(text).tolist()
    assert loaded.token_bytes == TRAINED.token_bytes
    assert json.loads(path.read_text(encoding="utf-8"))["added_tokens"][0]["content"] == SEPARATOR


def test_a_damaged_or_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for _ in range(2):
        with pytest.raises(ValueError, match=r"tokenizer\.json is damaged.*delete its folder"):
            BPETokenizer.load(path)
        path.write_text("{", encoding="utf-8")


def test_a_tokenizer_without_the_separator_is_refused() -> None:
    from tokenizers import Tokenizer, models

    with pytest.raises(ValueError, match=r"trained=.*endoftext"):
        BPETokenizer(Tokenizer(models.BPE()))


@pytest.mark.parametrize(("vocab_size", "right"), [(256, "at least 257"), (100_000, "at most [0-9]+: the tr")])
def test_a_vocabulary_too_small_or_too_large_is_refused(vocab_size: int, right: str) -> None:
    with pytest.raises(ValueError, match=f"vocab_size={vocab_size}.*{right}"):
        BPETokenizer.train(TEXTS, vocab_size)


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"sparse-toolkit\[hf\]"):
        BPETokenizer.train(TEXTS, 300)
