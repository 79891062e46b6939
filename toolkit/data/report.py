"""What went into a corpus and what did not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from toolkit.data.documents import Dropped


@dataclass(frozen=True)
class SplitReport:
    """One side of the split: its documents' names, their size and their tokens.

    ``bytes`` is the UTF-8 of the documents and one byte for the separator after each, so it equals the sum of
    the tokens' ``byte_lengths`` whatever the tokenizer.
    """

    documents: tuple[str, ...]
    bytes: int
    tokens: int


@dataclass(frozen=True)
class CorpusReport:
    """The documents of each split, and each document dropped with the reason."""

    train: SplitReport
    validation: SplitReport
    dropped: tuple[Dropped, ...]

    def summary(self) -> str:
        """Say it in three lines: each split's size, and how many documents were dropped for which reason."""
        reasons = Counter(one.reason for one in self.dropped).most_common()
        detail = ": " + ", ".join(f"{count} {reason}" for reason, count in reasons) if reasons else ""
        return "\n".join(
            (
                _line("train", self.train),
                _line("validation", self.validation),
                f"dropped: {len(self.dropped)} documents{detail}",
            )
        )


def _line(name: str, split: SplitReport) -> str:
    return (
        f"{name}: {len(split.documents):,} documents, {split.bytes:,} bytes, {split.tokens:,} tokens "
        f"({split.bytes / split.tokens:.2f} bytes a token)"
    )
