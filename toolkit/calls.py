"""Constructors' calls as text, so that a config file says ``SlidingWindow(512)`` and means it; nothing is evaluated."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class NotUnderstoodError(Exception):
    """A part of a text that means nothing; its message says which, and why."""


@dataclass(frozen=True)
class Calls:
    """Reads texts that call known names with literals, lists and each other.

    Attributes:
        what: the setting's name, in errors.
        known: what may be called, by name.
        kinds: what a whole text must give; other known names stand inside of it only.
        filled: arguments given to every call that takes them and does not say them.
        called: how the known ones are to be written, in errors.
    """

    what: str
    known: Mapping[str, Callable[..., Any]]
    kinds: tuple[type, ...] = (object,)
    filled: Mapping[str, Any] = field(default_factory=dict)
    called: str = "called with its arguments"

    def read(self, text: str) -> Any:
        """What ``text`` writes.

        Raises:
            ValueError: naming the text, and what in it was not understood and what is known, or what a constructor
                refused.
        """
        try:
            made = self.value(ast.parse(text, mode="eval").body)
            if not isinstance(made, self.kinds):
                raise NotUnderstoodError(f"it is no {self.what}")
            return made
        except (SyntaxError, TypeError, RecursionError, NotUnderstoodError) as error:
            raise ValueError(
                f"{self.what}={text!r}: {error}; it must be one of {', '.join(self._whole)}, {self.called}"
            ) from None
        except ValueError as error:
            raise ValueError(f"{self.what}={text!r}: {error}") from error

    def value(self, node: ast.expr) -> Any:
        """What an expression stands for: something made, a list or tuple of such, or a literal."""
        match node:
            case ast.List(elts=elements):
                return [self.value(element) for element in elements]
            case ast.Tuple(elts=elements):
                return tuple(self.value(element) for element in elements)
            case ast.Call(func=ast.Name(id=name)):
                return self.made(name, node)
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError):
            raise NotUnderstoodError(f"{ast.unparse(node)} is neither a literal nor a call") from None

    def made(self, name: str, node: ast.Call) -> Any:
        """What the call of ``name`` gives."""
        if name not in self.known:
            inside = "" if self._whole == sorted(self.known) else f"; known are {', '.join(sorted(self.known))}"
            raise NotUnderstoodError(f"nothing is called {name}{inside}")
        starred = any(isinstance(one, ast.Starred) for one in node.args)
        if starred or any(keyword.arg is None for keyword in node.keywords):
            raise NotUnderstoodError(f"the arguments of {ast.unparse(node)} must stand one by one")
        arguments = [self.value(argument) for argument in node.args]
        keywords = {str(keyword.arg): self.value(keyword.value) for keyword in node.keywords}
        signature = inspect.signature(self.known[name])
        try:
            given = signature.bind_partial(*arguments, **keywords).arguments
            left = {
                key: value for key, value in self.filled.items() if key in signature.parameters and key not in given
            }
            return self.known[name](*arguments, **keywords, **left)
        except TypeError as error:
            raise NotUnderstoodError(f"{name}({', '.join(signature.parameters)}): {error}") from None

    @property
    def _whole(self) -> list[str]:
        """Those that a whole text may call."""

        def fits(made: Callable[..., Any]) -> bool:
            return not isinstance(made, type) or issubclass(made, self.kinds)

        return sorted(name for name, made in self.known.items() if fits(made))
