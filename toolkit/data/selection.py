"""Which documents are kept, and which side of the train and validation split each is on.

Both are decided by hashes of the documents themselves, so the answer is the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from toolkit.checks import require
from toolkit.data.documents import Document, Dropped


def content_hash(text: str) -> str:
    """Hash what a text says: SHA-256 of it in lower case, each run of whitespace folded to one space.

    Two texts that differ only in case, indentation, line ends or blank lines have one hash; any other
    difference, a comment's wording included, gives another.

    >>> content_hash("def f():\\n\\treturn 1\\n") == content_hash("def F():  return 1")
    True
    """
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


def drop_repeats(documents: Sequence[Document]) -> tuple[list[Document], list[Dropped]]:
    """Drop empty documents and those that repeat another by ``content_hash``; the first name is kept.

    Returns:
        the documents kept, sorted by name, and what was dropped, each repeat with the document it repeats.
    """
    first: dict[str, Document] = {}
    dropped: list[Dropped] = []
    for document in sorted(documents, key=lambda one: one.name):
        if not document.text.strip():
            dropped.append(Dropped(document.name, "empty"))
            continue
        kept = first.setdefault(content_hash(document.text), document)
        if kept is not document:
            dropped.append(Dropped(document.name, "repeats another", kept.name))
    return list(first.values()), dropped


def position(name: str) -> float:
    """Place a name in [0, 1) by the first 48 bits of its SHA-256: uniform, and the same everywhere."""
    # A file name need not be UTF-8; what is not is escaped.
    digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split(documents: Sequence[Document], validation_share: float) -> tuple[list[Document], list[Document]]:
    """Split documents into train and validation: a document validates if its name's ``position`` < share.

    A document's side depends on nothing but its name and the share, so adding documents moves none.

    Raises:
        ValueError: the share is not inside (0, 1), or one side would be empty.
    """
    require(0 < validation_share < 1, "validation_share", validation_share, "between 0 and 1, both excluded")
    right = (
        f"given at least two documents that differ, not {len(documents)}: whole documents are held out, so "
        "divide a long text into several files, or into the lines of a .jsonl file"
    )
    require(len(documents) >= 2, "validation_share", validation_share, right)
    positions = [position(document.name) for document in documents]
    low, high = min(positions), max(positions)
    right = f"above {low} and at most {high}, or one side of these {len(documents)} documents is empty"
    require(low < validation_share <= high, "validation_share", validation_share, right)
    train = [one for one, place in zip(documents, positions, strict=True) if place >= validation_share]
    validation = [one for one, place in zip(documents, positions, strict=True) if place < validation_share]
    return train, validation
