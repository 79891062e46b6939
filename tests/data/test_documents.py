"""Bytes become text or a stated reason, and every file of a folder is met once."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.data.documents import NOT_UTF8, NUL_BYTE, UnreadableError, decode, walk


def test_decode_keeps_the_text_and_takes_off_only_the_byte_order_mark() -> None:
    text = "naïve\r\n\u2028 日本 🙂\n"
    assert decode(text.encode()) == text
    assert decode(b"\xef\xbb\xbf" + text.encode()) == text


@pytest.mark.parametrize(("data", "reason"), [("é".encode("latin-1"), NOT_UTF8), (b"a\0b", NUL_BYTE)])
def test_decode_refuses_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        decode(data)
    assert caught.value.reason == reason


def test_walk_meets_each_file_once_and_does_not_follow_a_loop(tmp_path: Path) -> None:
    for name in ("a.txt", "in/b.txt", "in/deep/c.txt", "skipped/d.txt", "in/skipped/e.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "in/deep/loop").symlink_to(tmp_path)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in walk(tmp_path, frozenset({"skipped"})))
    assert found == ["a.txt", "in/b.txt", "in/deep/c.txt", "in/deep/loop"]
