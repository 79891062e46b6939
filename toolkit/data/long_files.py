"""Long real text: whole files in which a name is used far from where it was defined."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.checks import require
from toolkit.data.documents import Document, Source
from toolkit.data.selection import drop_repeats, split
from toolkit.data.standard_library import StandardLibrary


@dataclass(frozen=True)
class LongFiles:
    """Whole files on either side of the corpus's split, each in the order of names."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]


def long_files(min_bytes: int = 65536, validation_share: float = 0.1, source: Source | None = None) -> LongFiles:
    """Give the documents of at least ``min_bytes`` bytes of UTF-8, split as :func:`toolkit.data.prepare_corpus` does.

    Repeats are dropped and sides are taken before the length is looked at, so a file is on the side it has in a corpus
    of the same source and share: no validation file was trained on.

    Args:
        min_bytes: the shortest, 64 KiB by default.
        validation_share: the corpus's.
        source: by default the standard library without its tests.

    Raises:
        ValueError: a side has no such file, or what the source and the split raise.
    """
    require(min_bytes >= 0, "min_bytes", min_bytes, "at least 0")
    kept, _ = drop_repeats((source or StandardLibrary()).read().documents)
    train, validation = (
        tuple(document for document in side if len(document.text.encode()) >= min_bytes)
        for side in split(kept, validation_share)
    )
    for name, side in (("training", train), ("validation", validation)):
        require(len(side) > 0, "min_bytes", min_bytes, f"smaller: no {name} file is as long")
    return LongFiles(train, validation)
