"""A finished study may grow: more budgets, widths, families or seeds, whose runs stand beside those that there are.

Every run follows from its own cell and seed and from the settings that all share, so that those that are finished stay
what they would be in the larger study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]

Settings = Mapping[str, Any]


def grows(old: str, new: str) -> bool:
    """Whether the study of the settings ``new`` has every run of the one of ``old``, as it is there.

    Args:
        old, new: settings as YAML, with comments that say what they came to; comments must be the same.
    """
    if _comments(old) != _comments(new):
        return False
    before, after = (yaml.safe_load(text) for text in (old, new))
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return False
    rules = {"grid": _grid, "model": _model, **dict.fromkeys(ANALYSIS, _any)}
    return all(rules.get(name, _same)(before.get(name), after.get(name)) for name in {*before, *after})


ANALYSIS = ("laws", "next_budget")
"""Settings of what is asked of the runs, which changes none of them."""


def _comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#")]


def _same(old: Any, new: Any) -> bool:
    return bool(old == new)


def _any(old: Any, new: Any) -> bool:
    return True


def _parts(old: Any, new: Any, rules: Mapping[str, Callable[[Any, Any], bool]]) -> bool:
    """Each part by its own rule; those without one must be the same."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return _same(old, new)
    return all(rules.get(name, _same)(old.get(name), new.get(name)) for name in {*old, *new})


def _grid(old: Any, new: Any) -> bool:
    return _parts(old, new, {"budgets": _budgets, "families": _more, "seeds": lambda a, b: bool(b >= a)})


def _model(old: Any, new: Any) -> bool:
    return _parts(old, new, {"arms": lambda a, b: all(arm in b for arm in a)})


def _more(old: Any, new: Any) -> bool:
    """Names that hold those before; None are all of them."""
    return new is None or (old is not None and set(old) <= set(new))


def _budgets(old: Any, new: Any) -> bool:
    """Every budget is still there, with its widths and families."""
    after = {budget["flops"]: budget for budget in new}
    return all(budget["flops"] in after and _budget(budget, after[budget["flops"]]) for budget in old)


def _budget(old: Settings, new: Settings) -> bool:
    return set(old["dims"]) <= set(new["dims"]) and _more(old.get("families"), new.get("families"))
