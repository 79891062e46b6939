"""What every scaling of rotary frequencies can be asked, and what all of them start from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import MISSING, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from toolkit.checks import require

LARGEST = 1e30
"""What a base, and any number of a scaling, may be: far above any in use, far below where fp32 overflows."""


class RotaryScaling(ABC):
    """A law for the frequencies of a rotary embedding, so that it serves longer contexts than it was trained on.

    Immutable, hashable, printed as it is written, read back by :func:`toolkit.layers.rotary.parse_scaling`; it learns
    nothing. ``depends_on_length`` says whether the frequencies of *all* positions change with the current length:
    then keys that were rotated at a shorter length no longer fit, so a cache keeps them unrotated, or refuses.
    """

    depends_on_length: ClassVar[bool] = False

    @abstractmethod
    def frequencies(
        self, rotary_dim: int, head_dim: int, base: float, seq_len: int, device: torch.device | None = None
    ) -> tuple[Tensor, float]:
        """inv_freq (rotary_dim / 2,) fp32, radians per position, and the factor of both cos and sin.

        ``seq_len`` is the current length, in tokens; only laws that depend on it look at it.
        """

    def check(self, rotary_dim: int, head_dim: int, base: float) -> None:  # noqa: B027
        """Raise a ``ValueError`` that names the field where the scaling does not go with these sizes."""

    def __repr__(self) -> str:
        """As it is written: fields at their defaults are left out."""
        held: Any = fields(self)  # type: ignore[arg-type]
        given = [(field.name, getattr(self, field.name), field.default) for field in held]
        written = ", ".join(f"{name}={value!r}" for name, value, default in given if unlike(value, default))
        return f"{type(self).__name__}({written})"


def unlike(value: Any, default: Any) -> bool:
    """Whether a field must be written: it has no default, or another value."""
    return default is MISSING or (value is not default and value != default)


def unscaled(rotary_dim: int, base: float, device: torch.device | None = None) -> Tensor:
    """w_k = base ** (-2k / rotary_dim), (rotary_dim / 2,) fp32 (RoFormer, arXiv 2104.09864, section 3.2.2)."""
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device) / rotary_dim
    return 1.0 / base**exponent


def is_number(value: Any) -> bool:
    """An int or float, no bool, nan or infinity, and none whose powers would overflow."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def require_factor(factor: Any) -> None:
    """``factor`` stretches the context: a number of 1 or more."""
    require(is_number(factor) and factor >= 1, "factor", factor, f"a number of 1 or more, at most {LARGEST:g}")


def require_original_length(original_length: Any, least: int = 1) -> None:
    """``original_length`` is the length trained on, in tokens."""
    whole = isinstance(original_length, int) and not isinstance(original_length, bool)
    right = f"the length trained on, an integer of {least} or more tokens, at most {LARGEST:g}"
    require(whole and least <= original_length <= LARGEST, "original_length", original_length, right)


def require_above_zero(**numbers: Any) -> None:
    """Each a number above zero; None where a field may be left unset."""
    for name, value in numbers.items():
        right = f"a number above 0, at most {LARGEST:g}"
        require(value is None or (is_number(value) and value > 0), name, value, right)
