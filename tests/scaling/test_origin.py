"""Where rows come from: other texts are refused, other code is refused with the way out, and a mix is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from synthetic_study import run_result

from toolkit.scaling.origin import DIGITS, mixed_code, require_one_corpus, require_one_origin
from toolkit.scaling.results import RunResult

CORPUS = "0123456789abcdef" + "0" * 48


def rows(*codes: str, corpus: str = CORPUS[:DIGITS]) -> list[RunResult]:
    made = (run_result("dense", 1e9, 16, seed, 2.0) for seed in range(len(codes)))
    return [replace(row, code=code, corpus=corpus) for row, code in zip(made, codes, strict=True)]


def test_rows_of_this_corpus_and_code_go_on() -> None:
    require_one_origin(rows("1", "1"), "1", CORPUS)
    require_one_origin([], "1", CORPUS)


@pytest.mark.parametrize("other_code", [False, True])
def test_rows_of_another_corpus_are_refused_whatever_is_allowed(other_code: bool) -> None:
    mixed = [*rows("1"), replace(rows("1")[0], run="stray", corpus="f" * DIGITS)]
    with pytest.raises(ValueError, match="results.csv='1 rows'.*`stray` were trained on another; use another out="):
        require_one_origin(mixed, "1", CORPUS, other_code)


def test_rows_of_other_code_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="results.csv='5 rows'") as refused:
        require_one_origin(rows("2", "1", "1", "1", "1", "0"), "2", CORPUS)
    said = str(refused.value)
    assert "by this code, '2'" in said
    assert "trained by '0', '1'" in said
    assert "--other_code true" in said
    assert said.count("`dense-") == 3
    assert "and 2 more" in said
    require_one_origin(rows("2", "1", "0"), "2", CORPUS, other_code=True)


def test_losses_of_two_texts_are_not_analysed_as_one() -> None:
    require_one_corpus(rows("1", "2"))
    require_one_corpus([])
    with pytest.raises(ValueError, match="'aa', 'bb'.*runs on one corpus"):
        require_one_corpus([*rows("1", corpus="bb"), *rows("1", corpus="aa")])


def test_a_report_says_how_many_runs_each_code_trained() -> None:
    assert mixed_code([]) == mixed_code(rows("1", "1")) == ""
    told = mixed_code(rows("b", "a", "b"))
    assert "(1 by 'a', 2 by 'b')" in told
    assert told.endswith(".")
