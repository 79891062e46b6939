"""The standard library as documents: the real one, and a small one with every kind of trouble."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.data.documents import NOT_UTF8, NUL_BYTE, Document, Dropped
from toolkit.data.standard_library import StandardLibrary, standard_library_folder


def library(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_the_real_library_is_read_whole() -> None:
    reading = StandardLibrary().read()
    texts = {document.name: document.text for document in reading.documents}
    assert texts["ast.py"] == Path(ast.__file__).read_bytes().decode()
    assert list(texts) == sorted(texts)
    assert 8e6 < sum(len(text.encode()) for text in texts.values()) < 20e6
    folders = {part for name in texts for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def test_it_is_the_base_interpreters_library_in_a_virtual_environment(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "v")], check=True)
    code = "import sysconfig; print(sysconfig.get_path('stdlib'))"
    inside = subprocess.check_output([tmp_path / "v/bin/python", "-c", code], text=True).strip()
    assert Path(inside).samefile(standard_library_folder())
    assert (standard_library_folder() / "os.py").is_file()


def test_only_the_librarys_own_source_is_read_and_what_cannot_be_is_listed(tmp_path: Path) -> None:
    files = {
        "b/c.py": b"c",
        "a.py": b"a",
        "notes.txt": b"not source",
        "bad.py": "# é".encode("latin-1"),
        "nul.py": b"x = '\0'",
        "test/t.py": b"t",
        "b/tests/t.py": b"bt",
        "b/idle_test/t.py": b"it",
        "site-packages/s.py": b"s",
        "dist-packages/d.py": b"d",
        "__pycache__/p.py": b"p",
        "_sysconfigdata__linux_x86_64.py": b"machine",
        "config-3.11-x86_64-linux-gnu/python-config.py": b"machine",
        "testing.py": b"not a test folder",
    }
    reading = StandardLibrary(folder=library(tmp_path, files)).read()
    own = (Document("a.py", "a"), Document("b/c.py", "c"), Document("testing.py", "not a test folder"))
    assert reading.documents == own
    assert reading.dropped == (Dropped("bad.py", NOT_UTF8), Dropped("nul.py", NUL_BYTE))
    with_tests = StandardLibrary(tests=True, folder=tmp_path).read()
    added = {document.name for document in with_tests.documents} - {document.name for document in own}
    assert added == {"test/t.py", "b/tests/t.py", "b/idle_test/t.py"}


def test_a_folder_without_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder=.*paths"):
        StandardLibrary(folder=tmp_path / "python311.zip").read()
