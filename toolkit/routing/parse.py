"""Routers and adjustments as text, so that a config file says ``TopKRouter(score='sigmoid')`` and means it."""

from __future__ import annotations

import ast
import importlib
import inspect
from typing import Any

from torch import nn

from toolkit.routing.auxiliary_loss import AuxiliaryLoss
from toolkit.routing.balancer import Balancer
from toolkit.routing.capacity import Capacity
from toolkit.routing.fixed import FixedRouter
from toolkit.routing.rounding import TokenRounding
from toolkit.routing.router import GatedRouter, Router
from toolkit.routing.soft import SoftRouter

ROUTERS = (Router, SoftRouter)
ADJUSTMENTS = (Capacity, TokenRounding)
BASES = (Router, GatedRouter, FixedRouter, AuxiliaryLoss, Balancer)


def build_router(
    text: str, *, dim: int, num_experts: int, top_k: int, vocab_size: int | None = None
) -> Router | SoftRouter:
    """The router that ``text`` writes, such as ``"TopKRouter(score='sigmoid', losses=[RouterZLoss(0.001)])"``.

    Only names of :mod:`toolkit.routing`, called with literals, lists and each other, are understood: nothing is
    evaluated. ``dim``, ``num_experts``, ``top_k`` and ``vocab_size`` are given to every call that takes them and
    does not say them itself.

    Raises:
        ValueError: naming the text, what in it was not understood and what is known, or what a constructor refused.

    >>> build_router("SinkhornRouter(top_k=1)", dim=8, num_experts=4, top_k=2)
    SinkhornRouter(
      dim=8, num_experts=4, top_k=1, iterations=20
      (losses): ModuleList()
    )
    """
    sizes = {"dim": dim, "num_experts": num_experts, "top_k": top_k}
    if vocab_size is not None:
        sizes["vocab_size"] = vocab_size
    router: Router | SoftRouter = _parse("router", text, sizes, ROUTERS)
    return router


def parse_adjustment(text: str) -> Capacity | TokenRounding:
    """The adjustment that ``text`` writes.

    Raises:
        ValueError: naming the text, what in it was not understood and what is known, or what a constructor refused.

    >>> parse_adjustment("TokenRounding(64)")
    TokenRounding(multiple=64)
    """
    adjustment: Capacity | TokenRounding = _parse("adjustment", text, {}, ADJUSTMENTS)
    return adjustment


class _NotUnderstoodError(Exception):
    pass


def _parse(what: str, text: str, sizes: dict[str, int], kinds: tuple[type, ...]) -> Any:
    known = _known()
    try:
        parsed = _value(ast.parse(text, mode="eval").body, sizes, known)
        if not isinstance(parsed, kinds):
            raise _NotUnderstoodError(f"it is no {what}")
        return parsed
    except (SyntaxError, RecursionError, _NotUnderstoodError) as error:
        names = ", ".join(sorted(name for name, kind in known.items() if issubclass(kind, kinds)))
        raise ValueError(f"{what}={text!r}: {error}; it must be one of {names}, called with its arguments") from None
    except ValueError as error:
        raise ValueError(f"{what}={text!r}: {error}") from error


def _known() -> dict[str, type]:
    """Classes of toolkit.routing that a config may make: routers, their parts, adjustments."""
    room = importlib.import_module("toolkit.routing")  # which imports this file
    public = {name: getattr(room, name) for name in room.__all__}
    kinds = (nn.Module, *ADJUSTMENTS)
    return {
        name: kind
        for name, kind in public.items()
        if isinstance(kind, type) and issubclass(kind, kinds) and kind not in BASES
    }


def _value(node: ast.expr, sizes: dict[str, int], known: dict[str, type]) -> Any:
    """What an expression stands for: something made, a list of such, or a literal."""
    match node:
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_value(element, sizes, known) for element in elements]
        case ast.Call(func=ast.Name(id=name)):
            return _made(name, node, sizes, known)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise _NotUnderstoodError(f"{ast.unparse(node)} is neither a literal nor a call") from None


def _made(name: str, node: ast.Call, sizes: dict[str, int], known: dict[str, type]) -> Any:
    if name not in known:
        raise _NotUnderstoodError(f"nothing is called {name}; known are {', '.join(sorted(known))}")
    if any(isinstance(argument, ast.Starred) for argument in node.args) or any(k.arg is None for k in node.keywords):
        raise _NotUnderstoodError(f"the arguments of {ast.unparse(node)} must stand one by one")
    signature = inspect.signature(known[name])
    try:
        given = signature.bind_partial(
            *[_value(argument, sizes, known) for argument in node.args],
            **{str(keyword.arg): _value(keyword.value, sizes, known) for keyword in node.keywords},
        ).arguments
        filled = {size: value for size, value in sizes.items() if size in signature.parameters and size not in given}
        return known[name](**given, **filled)
    except TypeError as error:
        raise _NotUnderstoodError(f"{name}({', '.join(signature.parameters)}): {error}") from None
