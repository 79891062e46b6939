"""The Python standard library's own source: a corpus that every machine with Python already has."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.checks import require
from toolkit.data.documents import Document, Dropped, Reading, UnreadableError, decode, walk

TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})
WRITTEN_BY_BUILD = ("_sysconfigdata", "config-")


def standard_library_folder() -> Path:
    """Give the folder of the base interpreter's standard library, also from inside a virtual environment."""
    return Path(sysconfig.get_path("stdlib"))


@dataclass(frozen=True)
class StandardLibrary:
    """Each ``.py`` file of the standard library as a document: about 12 MB, or 31 MB with its tests.

    The corpus is the same wherever the same Python release is installed, and differs between releases.
    Left out by definition: installed packages, caches, ``_sysconfigdata*`` and ``config-*`` (which hold the
    building machine's paths) and, unless ``tests``, folders named ``test``, ``tests`` or ``idle_test``. Files
    that are not UTF-8 or hold a NUL byte are dropped and listed.

    Args:
        tests: read the library's test folders too.
        folder: where the library is; by default beside the running interpreter.
    """

    tests: bool = False
    folder: Path = field(default_factory=standard_library_folder)

    def read(self) -> Reading:
        """Read every document.

        Raises:
            ValueError: the folder holds no Python source (as where the library is a zip file).
        """
        documents: list[Document] = []
        dropped: list[Dropped] = []
        for name, path in sorted(self._files().items()):
            try:
                documents.append(Document(name, decode(path.read_bytes())))
            except UnreadableError as error:
                dropped.append(Dropped(name, error.reason))
        right = "a folder with Python source; give paths to a corpus of your own instead"
        require(bool(documents), "folder", str(self.folder), right)
        return Reading(tuple(documents), tuple(dropped))

    def _files(self) -> dict[str, Path]:
        skip = NOT_LIBRARY if self.tests else NOT_LIBRARY | TEST_FOLDERS
        found = (path for path in walk(self.folder, skip) if path.suffix == ".py" and path.is_file())
        named = {path.relative_to(self.folder).as_posix(): path for path in found}
        return {name: path for name, path in named.items() if not name.startswith(WRITTEN_BY_BUILD)}
