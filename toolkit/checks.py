"""One way to refuse a bad setting: name it, show the value, say what would be right."""

from __future__ import annotations

from typing import Any

import torch


def require(condition: bool, name: str, value: Any, right: str) -> None:
    """Raise a ``ValueError`` that names the setting unless ``condition`` holds.

    Args:
        condition: what must be true.
        name: the argument or setting, as the user typed it (``"top_k"``).
        value: what was given.
        right: what would be right, as the end of a sentence that starts "it must be"
            (``"between 1 and num_experts=8"``).

    Raises:
        ValueError: ``top_k=9: it must be between 1 and num_experts=8``.

    >>> require(9 <= 8, "top_k", 9, "between 1 and num_experts=8")
    Traceback (most recent call last):
    ValueError: top_k=9: it must be between 1 and num_experts=8
    """
    if not condition:
        raise ValueError(f"{name}={value!r}: it must be {right}")


def require_positive(**settings: float) -> None:
    """Raise a ``ValueError`` for the first setting that is not above zero."""
    for name, value in settings.items():
        require(value > 0, name, value, "positive")


def require_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise a ``ValueError`` that lists the choices when ``value`` is none of them."""
    require(value in choices, name, value, "one of " + ", ".join(repr(choice) for choice in choices))


def refuse_double_backward(what: str) -> None:
    """Raise in a backward pass that is itself being recorded (``create_graph=True``).

    ``torch.autograd.function.once_differentiable`` would let some of those through with a gradient that
    is cut off from the graph.

    Raises:
        RuntimeError: naming ``what`` and the backend that can.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{what} can be differentiated once only; backend='reference' can be twice")
