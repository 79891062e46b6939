"""Packed documents see what separate ones see, whatever the pattern."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from pattern_cases import LENGTH, SIMPLE, STATIC, Case, as_on_a_gpu, packed_ids, seeds

from toolkit.attention.patterns import (
    BlockMask,
    Causal,
    Chunked,
    Documents,
    GlobalTokens,
    Pattern,
    PerDocument,
    PerHead,
    PrefixLM,
    Sinks,
    SlidingWindow,
    Strided,
)
from toolkit.attention.plan import make_plan, plan

IDS = torch.tensor([[0, 0, 5, 5, 5, -1, 2, 2], [7, 7, 7, 7, 7, 7, 7, 7]])


@settings(max_examples=60)
@given(STATIC, seeds)
def test_packed_is_each_document_by_itself(case: Case, seed: int) -> None:
    ids = packed_ids(1, seed)[0]
    pattern = PerDocument(ids, case.pattern.until(Documents(ids).longest or 1))
    expected, area = torch.zeros(LENGTH, LENGTH, dtype=torch.bool), 0
    for name in ids.unique().tolist():
        own = (ids == name).nonzero().flatten()
        if name >= 0:
            alone = case.pattern.until(len(own))
            expected[own[0] : own[-1] + 1, own[0] : own[-1] + 1] = alone.mask(len(own), len(own))
            area += alone.area(len(own), len(own))
    assert torch.equal(pattern.mask(LENGTH, LENGTH), expected)
    assert pattern.area(LENGTH, LENGTH) == area


@settings(max_examples=60)
@given(SIMPLE, seeds)
def test_the_definition_pushed_down_is_the_same(case: Case, seed: int) -> None:
    pattern = PerDocument(packed_ids(2, seed), case.pattern.until(10))
    definition = pattern.definition
    assert torch.equal(
        definition.mask(LENGTH, LENGTH).expand(2, 2, -1, -1), pattern.mask(LENGTH, LENGTH).expand(2, 2, -1, -1)
    )


def test_relative_parts_stay_as_they_are() -> None:
    ids = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    documents = Documents(ids)
    pushed = PerDocument(documents, Causal() & (SlidingWindow(2) | Strided(3))).definition
    assert pushed == documents & Causal() & (SlidingWindow(2) | Strided(3).definition)
    moved = PerDocument(documents, Causal() & Chunked(3)).definition
    assert moved == documents & Causal() & PerDocument(documents, Chunked(3))
    assert PerDocument(documents, Chunked(3)).definition == PerDocument(documents, Chunked(3))


def test_each_document_has_its_own_sinks() -> None:
    ids = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    robbed = (Documents(ids) & Sinks(1)).mask(8, 8)
    own = PerDocument(ids, Sinks(1)).mask(8, 8)
    assert robbed.any(dim=0).nonzero().flatten().tolist() == [0]
    assert own.any(dim=0).nonzero().flatten().tolist() == [0, 4]


def test_globals_of_each_document_are_gathered_from_all() -> None:
    ids = torch.arange(4).repeat_interleave(16)
    passes = plan(PerDocument(ids, SlidingWindow(2) | GlobalTokens(positions=[3, 9])), 64, 64)
    gathered = [part for part in passes if part.columns is not None]
    assert [part.columns.flatten().tolist() for part in gathered] == [[16 * n + p for n in range(4) for p in (3, 9)]]  # type: ignore[union-attr]
    assert sum(part.slots for part in passes) == len(passes) == 3


def test_planned_without_waiting() -> None:
    documents = Documents(packed_ids(2, 0))
    for pattern in (
        PerDocument(documents, Causal() & (SlidingWindow(4) | Sinks(2))),
        PerDocument(documents, GlobalTokens(2) | PrefixLM(3)),
        PerDocument(documents, ~GlobalTokens(positions=[1])),
    ):
        with as_on_a_gpu():
            make_plan(pattern, LENGTH, LENGTH)


def test_a_pattern_that_differs_by_head_stays_so() -> None:
    documents = Documents.from_lengths([[5, 3]])
    pattern = PerDocument(documents, PerHead([Causal(), Sinks(1)]))
    assert pattern.planes == (1, 2)
    for head, own in enumerate((Causal(), Sinks(1))):
        assert pattern.for_head(head) == PerDocument(documents, own)
        assert torch.equal(pattern.mask(8, 8)[0, head], PerDocument(documents, own).mask(8, 8)[0, 0])
    assert pattern.area(8, 8) == int(pattern.mask(8, 8).sum())


def test_they_print_and_are_equal_when_their_documents_and_patterns_are() -> None:
    one = Documents(IDS)
    assert PerDocument(one, Causal()) == PerDocument(one, Causal()) != PerDocument(one, Sinks(1))
    assert PerDocument(one, Causal()) != PerDocument(Documents(IDS), Causal())
    assert hash(PerDocument(one, Causal())) == hash(PerDocument(one, Causal()))
    assert str(PerDocument(one, Causal() | Sinks(2))) == "PerDocument(<2x8>, Causal() | Sinks(count=2))"


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: PerDocument(IDS.float(), Causal()), r"ids='torch.float32"),
        (lambda: PerDocument(torch.tensor([0, 1, 0]), Causal()), "stretches a document lies in=2: it must be 1"),
        (lambda: PerDocument(IDS, 3), "pattern=3: it must be a pattern"),  # type: ignore[arg-type]
        (lambda: PerDocument(IDS, Causal()).mask(9, 9), "ids length=8: it must be at least 9"),
        (
            lambda: PerDocument(IDS, BlockMask(torch.ones(3, 3, dtype=torch.bool), 2)).mask(8, 8),
            r"\(3, 3\): it must be at least \(4, 4\)",
        ),
    ],
)
def test_bad_settings_are_named(make: Callable[[], Pattern], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()
