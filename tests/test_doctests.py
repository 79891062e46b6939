"""The examples in the docstrings are run as they are written."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import pytest

ROOMS = ("attention", "routing", "layers", "models", "data")
EXAMPLES = ("toolkit.attention.interface", "toolkit.layers.moe", "toolkit.models.decoder")


def module_names() -> Iterator[str]:
    yield from ("toolkit", "toolkit.checks", "toolkit.work")
    for room in ROOMS:
        name = f"toolkit.{room}"
        yield name
        yield from (found.name for found in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."))


@pytest.mark.parametrize("name", list(module_names()))
def test_examples_in_docstrings_run_as_written(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0 or name not in EXAMPLES
