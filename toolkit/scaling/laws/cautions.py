"""What a fit's own numbers warn of: terms that the runs do not show, and exponents that nothing holds in place."""

from __future__ import annotations

from collections.abc import Mapping

NOTHING = 1e-6
"""A term whose share of the loss is nowhere above this is at 0."""


def of_terms(shares: Mapping[str, float], irreducible: str | None) -> list[str]:
    """A sentence for each coefficient at 0.

    Args:
        shares: of each coefficient, the largest share of a run's loss that its term has.
        irreducible: the one of them that stays at infinite size and data, if any.
    """
    zero = [name for name, share in shares.items() if share < NOTHING]
    return [
        f"{name} is at 0: the runs do not reach far enough to tell an irreducible loss from one that falls for ever."
        if name == irreducible
        else f"{name} is at 0: the losses show nothing of its term, and its exponent means nothing."
        for name in zero
    ]


def of_exponents(found: Mapping[str, float], guesses: Mapping[str, tuple[float, float]]) -> list[str]:
    """A sentence for each exponent with the sign that none of the guesses has, 0 included, or beyond all of them.

    Args:
        found: exponents by name.
        guesses: of each, the least and the largest that fits begin at. Where both are of one sign, one nearer to 0 than
            they are is sound.
    """
    found_and_range = [(name, value, *guesses[name]) for name, value in found.items()]
    return [
        f"{name} = {value:.4g} {reason}."
        for name, value, low, high in found_and_range
        if (reason := _reason(value, low, high))
    ]


def _reason(value: float, low: float, high: float) -> str:
    if low * high > 0 and value * high <= 0:
        return f"is not {'above' if high > 0 else 'below'} 0, as the law has it: its term does not fall"
    if value > max(high, 0.0) or value < min(low, 0.0):
        return f"is beyond {high if value > high else low:.3g}, where fits begin: a few runs may decide it"
    return ""
