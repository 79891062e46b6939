"""Patterns as text, so that a config file says ``Causal() & SlidingWindow(512)`` and means it."""

from __future__ import annotations

import ast

from toolkit.attention.patterns import Causal, Full, Pattern, SlidingWindow, Window

NAMES: dict[str, type[Pattern]] = {kind.__name__: kind for kind in (Full, Causal, Window, SlidingWindow)}


def parse_pattern(text: str) -> Pattern:
    """The pattern that ``text`` writes, such as ``"Causal() & SlidingWindow(512)"``.

    The inverse of ``str(pattern)``. Only pattern names, literals and ``&`` are understood: nothing is
    evaluated.

    Raises:
        ValueError: naming the text, what in it was not understood and the names that are known.

    >>> parse_pattern("Causal() & SlidingWindow(width=4)")
    Causal() & SlidingWindow(width=4)
    """
    try:
        return _build(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, _NotAPatternError) as error:
        known = ", ".join(NAMES)
        raise ValueError(
            f"pattern={text!r}: {error}; it must be {known}, called with their arguments and joined by &"
        ) from None


class _NotAPatternError(Exception):
    pass


def _build(node: ast.expr) -> Pattern:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        return _build(node.left) & _build(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id not in NAMES:
            raise _NotAPatternError(f"no pattern is called {node.func.id}")
        try:
            arguments = [ast.literal_eval(argument) for argument in node.args]
            keywords = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        except ValueError:
            raise _NotAPatternError(f"the arguments of {ast.unparse(node)} are not numbers") from None
        return NAMES[node.func.id](*arguments, **keywords)
    raise _NotAPatternError(f"{ast.unparse(node)} is not a pattern")
