"""Tasks as text, so that a config file says ``Passkey(length=512, depth=0.5)`` and means it."""

from __future__ import annotations

import ast

from toolkit.data.synthetic.copying import SelectiveCopy
from toolkit.data.synthetic.frequent_words import FrequentWords
from toolkit.data.synthetic.induction import Induction
from toolkit.data.synthetic.json_records import JsonKeyValue
from toolkit.data.synthetic.needles import Needles
from toolkit.data.synthetic.passkey import Passkey
from toolkit.data.synthetic.recall import MQAR
from toolkit.data.synthetic.summary import FirstTokenRecall, GlobalSummary
from toolkit.data.synthetic.task import Task
from toolkit.data.synthetic.variables import VariableTracking

TASKS: dict[str, type[Task]] = {
    kind.__name__: kind
    for kind in (
        MQAR,
        Passkey,
        Needles,
        VariableTracking,
        SelectiveCopy,
        Induction,
        FirstTokenRecall,
        GlobalSummary,
        JsonKeyValue,
        FrequentWords,
    )
}
"""Every task by its name."""


def parse_task(text: str) -> Task:
    """The task that ``text`` writes, such as ``"Induction(length=256, distance=(2, 200))"``: the inverse of ``str``.

    Only the names of tasks, called with literals, are understood: nothing is evaluated.

    Raises:
        ValueError: naming the text, what in it was not understood and the names known, or what the task refused.

    >>> parse_task("Passkey(512, depth=0.5)")
    Passkey(length=512, depth=0.5, digits=5, words=16)
    """
    try:
        return _made(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, RecursionError, _NotATaskError) as error:
        known = ", ".join(TASKS)
        raise ValueError(f"task={text!r}: {error}; it must be one of {known}, called with its arguments") from None
    except ValueError as error:
        raise ValueError(f"task={text!r}: {error}") from error


class _NotATaskError(Exception):
    pass


def _made(node: ast.expr) -> Task:
    match node:
        case ast.Call(func=ast.Name(id=name)) if name in TASKS:
            starred = any(isinstance(one, ast.Starred) for one in node.args) or any(
                k.arg is None for k in node.keywords
            )
            if starred:
                raise _NotATaskError("arguments must stand one by one")
            keywords = {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
            return TASKS[name](*[_literal(one) for one in node.args], **keywords)
    raise _NotATaskError(f"{ast.unparse(node)} calls no task")


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise _NotATaskError(f"{ast.unparse(node)} is not a literal") from None
