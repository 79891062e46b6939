"""Patterns as text, so that a config file says ``Causal() & SlidingWindow(512)`` and means it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from toolkit.attention import patterns
from toolkit.attention.patterns import And, Not, Or, Pattern
from toolkit.attention.patterns.tokens import KeysAt, LeadingQueries, QueriesAt
from toolkit.calls import Calls, NotUnderstoodError
from toolkit.checks import require

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


Kind = TypeVar("Kind", bound=type[Pattern])


def register_pattern(kind: Kind) -> Kind:
    """Make a pattern of one's own known by its class's name: to text, and so to configs, operators and kernels.

    A decorator. Register where the class is defined, so that every process that imports it knows it.

    Raises:
        ValueError: if it is no class of patterns, or the name is another's.
    """
    fits = isinstance(kind, type) and issubclass(kind, Pattern)
    require(fits, "kind", kind, "a class that derives from Pattern")
    name = kind.__name__
    free = name not in HALVES and _same_class(NAMES.get(name), kind)
    require(free, "kind", name, f"a name of its own, not one of {', '.join(sorted({**NAMES, **HALVES}))}")
    NAMES[name] = kind
    return kind


def _same_class(known: type | None, kind: type) -> bool:
    """Whether the name is free, or its own: a module that is loaded again defines its class again."""
    return known is None or (known.__module__, known.__qualname__) == (kind.__module__, kind.__qualname__)


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
    known: dict[str, Callable[..., Pattern]] = {**NAMES, **HALVES}
    joined = "called with its arguments, those joined by &, | and ~"
    pattern: Pattern = _Patterns("pattern", known, (Pattern,), called=joined, tensors=tuple(tensors)).read(text)
    return pattern


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


@dataclass(frozen=True)
class _Patterns(Calls):
    """Calls of patterns, joined by operators, and tensors that stand beside the text."""

    tensors: tuple[Tensor, ...] = ()

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.BinOp(left=left, op=(ast.BitAnd() | ast.BitOr()) as operator, right=right):
                join = Pattern.__and__ if isinstance(operator, ast.BitAnd) else Pattern.__or__
                return join(self._pattern(left), self._pattern(right))
            case ast.UnaryOp(op=ast.Invert(), operand=operand):
                return ~self._pattern(operand)
            case ast.Call(func=ast.Name(id="tensor"), args=[ast.Constant(value=int(place))], keywords=[]):
                return self._tensor(place)
        return super().value(node)

    def _pattern(self, node: ast.expr) -> Pattern:
        value = self.value(node)
        if not isinstance(value, Pattern):
            raise NotUnderstoodError(f"{ast.unparse(node)} is not a pattern")
        return value

    def _tensor(self, place: int) -> Tensor:
        if not 0 <= place < len(self.tensors):
            none = "text alone, as in a config file, holds no tensor"
            given = f"only {len(self.tensors)} were given" if self.tensors else none
            raise NotUnderstoodError(f"there is no tensor({place}): {given}")
        return self.tensors[place]
