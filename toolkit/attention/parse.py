"""Patterns as text, so that a config file says ``Causal() & SlidingWindow(512)`` and means it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from toolkit.attention import patterns
from toolkit.attention.patterns import And, Not, Or, Pattern
from toolkit.attention.patterns.tokens import KeysAt, LeadingQueries, QueriesAt

NAMES: dict[str, type[Pattern]] = {
    name: kind
    for name, kind in vars(patterns).items()
    if name in patterns.__all__ and isinstance(kind, type) and kind not in (Pattern, And, Or, Not)
}

HALVES: dict[str, Callable[..., Pattern]] = {
    "KeysAt": KeysAt.of,
    "QueriesAt": QueriesAt.of,
    "LeadingQueries": LeadingQueries,
}
"""The halves of ``GlobalTokens``, which layers take apart."""


def parse_pattern(text: str, tensors: Sequence[Tensor] = ()) -> Pattern:
    """The pattern that ``text`` writes, such as ``"Causal() & (SlidingWindow(512) | Sinks(4))"``.

    The inverse of ``str(pattern)`` for patterns without tensors, and of :func:`encode` for all. Only the
    names of patterns, ``&``, ``|``, ``~``, brackets, literals, lists and ``tensor(n)`` for ``tensors[n]`` are
    understood: nothing is evaluated.

    Raises:
        ValueError: naming the text, what in it was not understood and the names that are known.

    >>> parse_pattern("Causal() & ~SlidingWindow(width=4)")
    Causal() & ~SlidingWindow(width=4)
    """
    try:
        parsed = _value(ast.parse(text, mode="eval").body, tensors)
        if not isinstance(parsed, Pattern):
            raise _NotAPatternError("it is no pattern")
        return parsed
    except (SyntaxError, TypeError, RecursionError, _NotAPatternError) as error:
        known = ", ".join(sorted(NAMES))
        raise ValueError(
            f"pattern={text!r}: {error}; it must be {known}, called with their arguments and joined by &, | and ~"
        ) from None


def encode(pattern: Pattern) -> tuple[str, list[Tensor]]:
    """Text that :func:`parse_pattern` reads with the tensors beside it, each written ``tensor(n)`` in the text.

    >>> encode(patterns.Causal() & patterns.Documents.from_lengths([[2, 1]]))
    ('Causal() & Documents(ids=tensor(0))', [tensor([[0, 0, 1]])])
    """
    tensors: list[Tensor] = []

    def write(tensor: Tensor) -> str:
        known = [place for place, held in enumerate(tensors) if held is tensor]
        if not known:
            tensors.append(tensor)
        return f"tensor({known[0] if known else len(tensors) - 1})"

    return pattern.written(write), tensors


class _NotAPatternError(Exception):
    pass


def _value(node: ast.expr, tensors: Sequence[Tensor]) -> Any:
    """What an expression stands for: a pattern, a tensor, a list of such, or a literal."""
    match node:
        case ast.BinOp(left=left, op=(ast.BitAnd() | ast.BitOr()) as operator, right=right):
            join = Pattern.__and__ if isinstance(operator, ast.BitAnd) else Pattern.__or__
            return join(_pattern(left, tensors), _pattern(right, tensors))
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return ~_pattern(operand, tensors)
        case ast.List(elts=elements):
            return [_value(element, tensors) for element in elements]
        case ast.Call(func=ast.Name(id="tensor"), args=[ast.Constant(value=int(place))], keywords=[]):
            return _tensor(place, tensors)
        case ast.Call(func=ast.Name(id=name)):
            return _called(name, node, tensors)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise _NotAPatternError(f"{ast.unparse(node)} is neither a pattern nor a literal") from None


def _pattern(node: ast.expr, tensors: Sequence[Tensor]) -> Pattern:
    value = _value(node, tensors)
    if not isinstance(value, Pattern):
        raise _NotAPatternError(f"{ast.unparse(node)} is not a pattern")
    return value


def _tensor(place: int, tensors: Sequence[Tensor]) -> Tensor:
    if not 0 <= place < len(tensors):
        none = "text alone, as in a config file, holds no tensor"
        given = f"only {len(tensors)} were given" if tensors else none
        raise _NotAPatternError(f"there is no tensor({place}): {given}")
    return tensors[place]


def _called(name: str, node: ast.Call, tensors: Sequence[Tensor]) -> Pattern:
    made: Callable[..., Pattern] | None = NAMES.get(name) or HALVES.get(name)
    if made is None:
        raise _NotAPatternError(f"no pattern is called {name}")
    if any(isinstance(argument, ast.Starred) for argument in node.args) or any(k.arg is None for k in node.keywords):
        raise _NotAPatternError(f"the arguments of {ast.unparse(node)} must stand one by one")
    arguments = [_value(argument, tensors) for argument in node.args]
    keywords = {str(keyword.arg): _value(keyword.value, tensors) for keyword in node.keywords}
    return made(*arguments, **keywords)
