"""The user's files as documents: what is read, how it is named, and each refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolkit.data.documents import Document, Dropped
from toolkit.data.text_files import TextFiles


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.md").write_text("# b", encoding="utf-8")
    (folder / "deep/a.TXT").write_text("é", encoding="utf-8")
    (folder / "deep/c.py").write_bytes(b"c = 1\r\n")
    return folder


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_folder_is_read_recursively_in_the_order_of_names(notes: Path) -> None:
    reading = TextFiles((str(notes),)).read()
    assert reading.documents == (
        Document("notes/b.md", "# b"),
        Document("notes/deep/a.TXT", "é"),
        Document("notes/deep/c.py", "c = 1\r\n"),
    )
    assert reading.dropped == ()


def test_names_do_not_depend_on_where_the_data_lie(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = TextFiles((str(notes),)).read()
    monkeypatch.chdir(tmp_path)
    assert TextFiles(("notes",)).read() == expected
    monkeypatch.chdir(notes)
    assert TextFiles((".",)).read() == expected
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = notes.rename(elsewhere / "notes")
    assert TextFiles((str(moved),)).read() == expected


def test_the_order_of_paths_does_not_matter_and_a_path_given_twice_is_read_once(notes: Path) -> None:
    one, other = str(notes / "b.md"), str(notes / "deep")
    assert TextFiles((one, other)).read() == TextFiles((other, one, other)).read()


def test_what_a_folder_holds_besides_text_is_listed(notes: Path) -> None:
    (notes / "picture.png").write_bytes(b"\x89PNG")
    (notes / "again").symlink_to(notes)
    dropped = TextFiles((str(notes), str(notes))).read().dropped
    assert dropped == (
        Dropped("notes/again", "link to a folder"),
        Dropped("notes/picture.png", "suffix is not read"),
    )


def test_each_line_of_a_jsonl_file_is_a_document_in_the_order_of_the_file(tmp_path: Path) -> None:
    texts = [f"text {number}\u2028\n" for number in range(12)]
    path = tmp_path / "web.jsonl"
    written = (json.dumps({"id": 1, "body": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_text("".join(written), encoding="utf-8")
    documents = TextFiles((str(path),), jsonl_field="body").read().documents
    assert [document.text for document in documents] == texts
    assert documents[11].name == "web.jsonl:00000012"


@pytest.mark.parametrize("text", ['{"body": "x"', "[1", "", "   "])
def test_a_line_that_is_not_json_is_refused_with_file_and_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "web.jsonl"
    path.write_text('{"body": "fine"}\n' + text + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"paths.*web\.jsonl line 2 is not JSON"):
        TextFiles((str(path),), jsonl_field="body").read()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"title": "x"}, "'title'"),
        (["body"], "which has"),
        ("body", "which has"),
        ({"body": 3}, "has int"),
        ({"body": None}, "has NoneType"),
        ({"body": "\ud800"}, "UTF-8"),
        ({"body": "a\0b"}, "NUL"),
    ],
)
def test_a_line_without_text_in_the_field_is_refused(tmp_path: Path, record: object, reason: str) -> None:
    path = lines(tmp_path / "web.jsonl", {"body": "fine"}, record)
    with pytest.raises(ValueError, match=rf"(?s)jsonl_field='body'.*{reason}") as caught:
        TextFiles((str(path),), jsonl_field="body").read()
    assert f"{path} line 2" in str(caught.value)


def test_jsonl_needs_the_field(tmp_path: Path) -> None:
    path = lines(tmp_path / "web.jsonl", {"body": "fine"})
    with pytest.raises(ValueError, match=r"jsonl_field=None.*web\.jsonl"):
        TextFiles((str(path),)).read()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing.txt", "existing"), ("empty", "holds files"), ("image.png", r"\.txt, \.md, \.py, \.jsonl")],
)
def test_a_path_that_cannot_be_read_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "image.png").touch()
    with pytest.raises(ValueError, match=rf"paths='.*{name}'.*{reason}"):
        TextFiles((str(tmp_path / name),)).read()


@pytest.mark.parametrize("data", ["é".encode("latin-1"), b"a\0b"])
def test_a_file_that_is_not_text_is_refused_with_its_name(notes: Path, data: bytes) -> None:
    (notes / "bad.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"paths='.*bad\.txt'.*UTF-8"):
        TextFiles((str(notes),)).read()


def test_two_files_of_one_name_are_refused(notes: Path, tmp_path: Path) -> None:
    other = tmp_path / "other/notes"
    other.mkdir(parents=True)
    (other / "b.md").write_text("other", encoding="utf-8")
    with pytest.raises(ValueError, match=r"paths=.*both notes/b\.md"):
        TextFiles((str(notes), str(other))).read()


def test_one_string_or_nothing_for_paths_is_refused() -> None:
    for paths in ("notes", ()):
        with pytest.raises(ValueError, match="paths="):
            TextFiles(paths).read()  # type: ignore[arg-type]
