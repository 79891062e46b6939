"""The code's version, with git, without a checkout and without git."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

from toolkit import __version__
from toolkit.training import provenance


@pytest.mark.parametrize(
    ("returncode", "printed", "expected"),
    [(0, "abc1234-dirty\n", f"{__version__} abc1234-dirty"), (128, "", __version__)],
)
def test_the_release_and_the_commit_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, returncode: int, printed: str, expected: str
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=returncode, stdout=printed))
    assert provenance.code_version() == expected


def test_without_git_it_is_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object, **settings: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert provenance.code_version() == __version__
