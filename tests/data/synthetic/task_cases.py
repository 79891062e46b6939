"""Small tasks of every kind, and for each a solver that reads the sequence by its documented format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from toolkit.data.synthetic import (
    MQAR,
    FirstTokenRecall,
    FrequentWords,
    GlobalSummary,
    Induction,
    JsonKeyValue,
    Needles,
    Passkey,
    SelectiveCopy,
    SparseInduction,
    Task,
    TaskBatch,
    VariableTracking,
)

CASES: tuple[Task, ...] = (
    MQAR(length=48, pairs=6, keys=12, values=16, fillers=4),
    MQAR(length=16, pairs=4, keys=4, values=4, fillers=1, power=1.5),
    Passkey(length=48, digits=3, words=5),
    Passkey(length=40, depth=0.25, digits=2, words=5),
    Needles(length=40, keys=6, key_ids=12, value_ids=12, fillers=4),
    Needles(length=48, keys=3, values_per_key=3, key_ids=6, value_ids=16, fillers=4),
    Needles(length=48, keys=6, queries=3, key_ids=12, value_ids=12, fillers=4),
    Needles(length=48, keys=4, values_per_key=2, queries=2, key_ids=8, value_ids=16, fillers=4),
    VariableTracking(length=56, chains=4, hops=2, names=16, values=12, fillers=4),
    SelectiveCopy(length=48, count=4, symbols=12),
    Induction(length=40, distance=(2, 39), symbols=12),
    Induction(length=40, distance=17, symbols=12),
    SparseInduction(length=40, distance=(4, 39), pairs=3, keys=6, values=12, fillers=4),
    SparseInduction(length=40, distance=17, pairs=4, keys=6, values=12, fillers=4),
    SparseInduction(length=64, distance=(4, 63), pairs=4, questions=2, keys=6, values=12, fillers=4),
    FirstTokenRecall(length=40, symbols=12),
    GlobalSummary(length=48, marks=8, fillers=4),
    GlobalSummary(length=48, marks=8, kind="count", fillers=4),
    JsonKeyValue(pairs=4, key_length=2, value_length=3),
    FrequentWords(length=64, words=16),
)


def solve(task: Task, tokens: list[int]) -> dict[int, int]:
    """What each asked position asks for, read off the tokens alone."""
    return _SOLVERS[type(task)](task, tokens)


def asked_of(batch: TaskBatch, row: int) -> dict[int, int]:
    """What the batch says is asked."""
    return {place: label for place, label in enumerate(batch.labels[row].tolist()) if label != -100}


def _mqar(task: MQAR, tokens: list[int]) -> dict[int, int]:
    pairs = 2 * task.pairs
    value = dict(zip(tokens[0:pairs:2], tokens[1:pairs:2], strict=True))
    return {place: value[token] for place, token in enumerate(tokens) if place >= pairs and token < task.keys}


def _passkey(task: Passkey, tokens: list[int]) -> dict[int, int]:
    key = tokens[tokens.index(10) + 1 : tokens.index(11)]
    return {tokens.index(12) + place: digit for place, digit in enumerate(key)}


def _needles(task: Needles, tokens: list[int]) -> dict[int, int]:
    values: dict[int, list[int]] = {}
    for place, token in enumerate(tokens):
        if token == 0:
            values.setdefault(tokens[place + 1], []).append(tokens[place + 2])
    asks = [place + 1 for place, token in enumerate(tokens) if token == 1]
    return {ask + turn: value for ask in asks for turn, value in enumerate(values[tokens[ask]])}


def _variables(task: VariableTracking, tokens: list[int]) -> dict[int, int]:
    known: dict[int, int] = {}
    asked = {}
    for place, token in enumerate(tokens):
        if token == 0:
            name, source = tokens[place + 1 : place + 3]
            assert name not in known
            known[name] = known.get(source, source)
        if token == 1:
            asked[place + 1] = known[tokens[place + 1]]
    assert min(known.values()) >= 2 + task.names  # every chain ends in a value
    return asked


def _copying(task: SelectiveCopy, tokens: list[int]) -> dict[int, int]:
    marked = [tokens[place + 1] for place, token in enumerate(tokens) if token == 0]
    return {tokens.index(1) + place: symbol for place, symbol in enumerate(marked)}


def _induction(task: Induction, tokens: list[int]) -> dict[int, int]:
    (place,) = [place for place, token in enumerate(tokens[:-1]) if token == tokens[-1]]
    return {len(tokens) - 1: tokens[place + 1]}


def _sparse_induction(task: SparseInduction, tokens: list[int]) -> dict[int, int]:
    value: dict[int, int] = {}
    asked = {}
    for place, token in enumerate(tokens):
        if token in value:
            asked[place] = value[token]
        elif token < task.keys:
            value[token] = tokens[place + 1]
    return asked


def _first(task: FirstTokenRecall, tokens: list[int]) -> dict[int, int]:
    return {tokens.index(0): tokens[0]}


def _summary(task: GlobalSummary, tokens: list[int]) -> dict[int, int]:
    marked = [tokens[place + 1] for place, token in enumerate(tokens) if token == 3]
    assert len(marked) == task.marks
    ones = marked.count(1)
    return {tokens.index(0): (2, 1)[ones % 2] if task.kind == "parity" else 4 + task.fillers + ones}


def _json(task: JsonKeyValue, tokens: list[int]) -> dict[int, int]:
    record, question = bytes(tokens).decode().split("\n")
    head, key, middle, told = question.split('"')
    assert (head, middle) == ("", ": ")
    value = json.loads(record)[key]
    assert value.startswith(told)
    return dict(enumerate(value.encode(), start=len(tokens) - len(told) - 1))


def _words(task: FrequentWords, tokens: list[int]) -> dict[int, int]:
    ask = tokens.index(1)
    ranked = Counter(tokens[:ask]).most_common()
    assert ranked[0][0] == 0
    return {ask + place: word for place, (word, _) in enumerate(ranked[1 : 1 + len(tokens) - ask])}


_SOLVERS: dict[type, Callable[[Any, list[int]], dict[int, int]]] = {
    MQAR: _mqar,
    Passkey: _passkey,
    Needles: _needles,
    VariableTracking: _variables,
    SelectiveCopy: _copying,
    Induction: _induction,
    SparseInduction: _sparse_induction,
    FirstTokenRecall: _first,
    GlobalSummary: _summary,
    JsonKeyValue: _json,
    FrequentWords: _words,
}
