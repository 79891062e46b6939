"""The report's summary says the sizes and each reason with its count."""

from __future__ import annotations

from toolkit.data.documents import Dropped
from toolkit.data.report import CorpusReport, SplitReport

TRAIN, VALIDATION = SplitReport(("a", "b"), 12_000, 6_000), SplitReport(("c",), 50, 50)


def test_the_summary_gives_each_split_and_the_reasons_most_frequent_first() -> None:
    repeats = (Dropped(name, "repeats another", "a") for name in "ef")
    dropped = (Dropped("d", "empty"), *repeats)
    assert CorpusReport(TRAIN, VALIDATION, dropped).summary().splitlines() == [
        "train: 2 documents, 12,000 bytes, 6,000 tokens (2.00 bytes a token)",
        "validation: 1 documents, 50 bytes, 50 tokens (1.00 bytes a token)",
        "dropped: 3 documents: 2 repeats another, 1 empty",
    ]


def test_nothing_dropped_is_said_too() -> None:
    assert CorpusReport(TRAIN, VALIDATION, ()).summary().endswith("dropped: 0 documents")
