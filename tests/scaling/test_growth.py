"""A study may grow by budgets, widths, families and seeds; anything else makes it another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from toolkit.scaling import StudyFolder
from toolkit.scaling.growth import grows

DENSE, MOE = {"name": "dense"}, {"name": "moe", "num_experts": 8}
CAME_TO = "# came to\n# corpus_digest: abc\n"


def settings(**changes: Any) -> str:
    """The settings of a small study with some parts changed, named ``part__name``."""
    values: dict[str, Any] = {
        "grid": {"budgets": [{"flops": 1e9, "dims": [8, 16], "families": None}], "families": None, "seeds": 2},
        "model": {"arms": [DENSE, MOE], "layers": 2},
        "training": {"context": 32},
        "laws": {"dims": [8, 64]},
        "next_budget": None,
    }
    for name, value in changes.items():
        part, _, inner = name.partition("__")
        if inner:
            values[part] = values[part] | {inner: value}
        else:
            values[part] = value
    return yaml.safe_dump(values) + CAME_TO


def budget(flops: float = 1e9, dims: tuple[int, ...] = (8, 16), families: list[str] | None = None) -> dict[str, Any]:
    return {"flops": flops, "dims": list(dims), "families": families}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"grid__budgets": [budget(), budget(2e9, (16,), ["dense"])]},
        {"grid__budgets": [budget(2e9), budget(dims=(8, 12, 16))]},
        {"grid__seeds": 3},
        {"model__arms": [DENSE, {"name": "fine", "num_experts": 16}, MOE]},
        {"next_budget": {"flops": 4e9}},
        {"laws": {"dims": [8, 128]}},
    ],
)
def test_more_runs_and_other_questions_may_come(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert grows(settings(), settings(**changes))
    folder = StudyFolder(tmp_path)
    folder.claim(settings())
    folder.claim(settings(**changes))
    assert folder.settings.read_text() == settings(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"grid__budgets": [budget(1.1e9)]},
        {"grid__budgets": [budget(dims=(8,))]},
        {"grid__budgets": [budget(families=["dense"])]},
        {"grid__seeds": 1},
        {"grid__families": ["dense"]},
        {"grid__recipe": {"learning_rate": 0.1}},
        {"model__arms": [DENSE]},
        {"model__arms": [DENSE, MOE | {"num_experts": 4}]},
        {"model__layers": 3},
        {"training__context": 64},
    ],
)
def test_a_run_that_would_be_lost_or_changed_makes_it_another_study(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert not grows(settings(), settings(**changes))
    folder = StudyFolder(tmp_path)
    folder.claim(settings())
    with pytest.raises(ValueError, match="out=.*: it must be another folder"):
        folder.claim(settings(**changes))
    assert folder.settings.read_text() == settings()


def test_families_of_a_budget_may_become_more_and_all_are_most() -> None:
    some = settings(grid__budgets=[budget(families=["dense"])])
    assert grows(some, settings(grid__budgets=[budget(families=["moe", "dense"])]))
    assert grows(some, settings())
    assert not grows(settings(), some)


def test_what_the_settings_came_to_must_be_the_same() -> None:
    assert not grows(settings(), settings().replace("abc", "abd"))
    assert not grows("text", "text of another kind")
