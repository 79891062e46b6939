"""The user's own files and folders as a source of documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.checks import require
from toolkit.data.documents import Document, Dropped, Reading, UnreadableError, decode, walk

TEXT_SUFFIXES = (".txt", ".md", ".py")
JSON_LINES = ".jsonl"
SUFFIXES = (*TEXT_SUFFIXES, JSON_LINES)


@dataclass(frozen=True)
class TextFiles:
    """Each ``.txt``, ``.md`` and ``.py`` file, and each line of a ``.jsonl`` file, as a document.

    A folder is read recursively; its documents are named by the folder's own name and the path below it
    (``notes/2024/march.md``), a file by its name alone, a line by file and number (``web.jsonl:00000012``),
    so names do not depend on where the data lie. Files of other suffixes and links to folders met inside a
    folder are listed as dropped.

    Args:
        paths: files and folders.
        jsonl_field: the field of each line of a ``.jsonl`` file that holds the text.
    """

    paths: tuple[str, ...]
    jsonl_field: str | None = None

    def read(self) -> Reading:
        """Read every document, in the order of their names.

        Raises:
            ValueError: a path is missing, has another suffix, or is a folder with nothing to read; a file is
                not UTF-8 or holds a NUL byte; two files have one name; or a line of a ``.jsonl`` file has no
                text in ``jsonl_field``.
        """
        require(not isinstance(self.paths, str), "paths", self.paths, "a sequence of paths, not one string")
        require(len(self.paths) > 0, "paths", self.paths, "at least one file or folder")
        files: dict[str, Path] = {}
        dropped: list[Dropped] = []
        for path in self.paths:
            for name, file in _named_files(path):
                if file.is_dir():
                    dropped.append(Dropped(name, "link to a folder"))
                elif file.suffix.lower() not in SUFFIXES:
                    dropped.append(Dropped(name, "suffix is not read"))
                else:
                    right = f"files of different names: {files.get(name)} and {file} are both {name}"
                    require(files.get(name, file) == file, "paths", self.paths, right)
                    files[name] = file
        found = (document for name, file in files.items() for document in self._documents(name, file))
        documents = sorted(found, key=lambda document: document.name)
        return Reading(tuple(documents), tuple(sorted(set(dropped), key=lambda one: one.name)))

    def _documents(self, name: str, file: Path) -> Iterator[Document]:
        try:
            text = decode(file.read_bytes())
        except UnreadableError as error:
            raise ValueError(f"paths={str(file)!r}: it must be UTF-8 text, but is {error.reason}") from error
        if file.suffix.lower() in TEXT_SUFFIXES:
            yield Document(name, text)
            return
        # Not splitlines(): JSON strings may hold other line ends, such as U+2028, as they are.
        for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
            yield Document(f"{name}:{number:08d}", self._field(line, file, number))

    def _field(self, line: str, file: Path, number: int) -> str:
        place = f"{file} line {number}"
        require(self.jsonl_field is not None, "jsonl_field", None, f"the field that holds the text of {file}")
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"paths: {place} is not JSON: {error}; it must be one object a line") from error
        fields = list(record) if isinstance(record, dict) else []
        right = f"a field of {place}, which has {fields}"
        require(self.jsonl_field in fields, "jsonl_field", self.jsonl_field, right)
        text = record[self.jsonl_field]
        right = f"a field that holds a string, but {place} has {type(text).__name__}"
        require(isinstance(text, str), "jsonl_field", self.jsonl_field, right)
        return _as_utf8(text, self.jsonl_field, place)


def _named_files(path: str) -> list[tuple[str, Path]]:
    top = Path(path).expanduser().absolute()
    right = "of " + ", ".join(SUFFIXES)
    require(top.exists(), "paths", str(path), "an existing file or folder")
    if not top.is_dir():
        require(top.suffix.lower() in SUFFIXES, "paths", str(path), f"a folder or a file {right}")
        return [(top.name, top)]
    named = [(file.relative_to(top.parent).as_posix(), file) for file in walk(top)]
    found = any(file.suffix.lower() in SUFFIXES and file.is_file() for _, file in named)
    require(found, "paths", str(path), f"a folder that holds files {right}")
    return named


def _as_utf8(text: str, field: str | None, place: str) -> str:
    # JSON can escape what UTF-8 cannot hold: half of a surrogate pair.
    try:
        return decode(text.encode())
    except (UnicodeEncodeError, UnreadableError) as error:
        right = "a field of UTF-8 text without NUL bytes"
        raise ValueError(f"jsonl_field={field!r}: it must be {right}, but {place} is not") from error
