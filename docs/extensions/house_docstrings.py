"""What our docstrings write in their own way, written as the reference's reader (griffe, then Markdown) wants it."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from griffe import Extension, Object

SECTIONS = ("Args:", "Attributes:")
JOINED = re.compile(r"(?P<indent> *)(?P<names>\w+(?:, \w+)+): ?(?P<text>.*)")
ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):`~?([^`]+)`")


class HouseDocstrings(Extension):
    """Rewrites each docstring before it is parsed, so that griffe still warns of a name that is no parameter."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for every object, its docstring not yet read."""
        if obj.docstring is not None:
            obj.docstring.value = fence_examples(split_names(ROLE.sub(r"`\1`", obj.docstring.value)))


def split_names(text: str) -> str:
    """``a, b: words`` under Args and Attributes as ``a: words`` and ``b: words``, further lines of it with each."""
    lines, section = [], False
    for entry in _entries(text.split("\n")):
        head = entry[0]
        if head and not head.startswith(" "):
            section = head in SECTIONS
        found = JOINED.fullmatch(head) if section else None
        for name in found["names"].split(", ") if found else ():
            lines += [f"{found['indent']}{name}: {found['text']}", *entry[1:]]
        if not found:
            lines += entry
    return "\n".join(lines)


def _entries(lines: list[str]) -> list[list[str]]:
    """Each line with those after it that are indented by more than the four spaces of a section's entries."""
    entries: list[list[str]] = []
    for line in lines:
        if entries and line.startswith(" " * 5):
            entries[-1].append(line)
        else:
            entries.append([line])
    return entries


def fence_examples(text: str) -> str:
    """Paragraphs that open with ``>>>`` as blocks of code: Markdown would quote them, three deep."""
    paragraphs = [list(lines) for _, lines in groupby(text.split("\n"), key=lambda line: bool(line.strip()))]
    fenced = [["```pycon", *lines, "```"] if lines[0].startswith(">>>") else lines for lines in paragraphs]
    return "\n".join(line for lines in fenced for line in lines)
