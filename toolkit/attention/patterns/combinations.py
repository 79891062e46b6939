"""How patterns combine: ``a & b``, ``a | b``, ``~a``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toolkit.attention.intervals import Intervals
from toolkit.attention.patterns.pattern import Full, Pattern
from toolkit.checks import require

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, repr=False)
class _Combination(Pattern):
    """Patterns joined by an operator; flat, so that a & (b & c) is (a & b) & c: one text, hash and plan."""

    parts: tuple[Pattern, ...]

    @classmethod
    def of(cls, *patterns: Pattern) -> Self:
        """The patterns joined, one list whatever the brackets."""
        return cls(tuple(part for one in patterns for part in (one.parts if isinstance(one, cls) else (one,))))

    def __post_init__(self) -> None:
        object.__setattr__(self, "planes", joint_planes(self.parts))
        object.__setattr__(self, "device", joint_device(self.parts))

    def leaves(self, positive: bool = True) -> Iterator[tuple[Pattern, bool]]:
        """Those of every part."""
        for part in self.parts:
            yield from part.leaves(positive)

    def check(self, q_end: int, end: int) -> None:
        """Every part must fit."""
        for part in self.parts:
            part.check(q_end, end)

    def _joined(self, parts: Iterator[Pattern]) -> Pattern:
        raise NotImplementedError

    def mapped(self, change: Callable[[Pattern], Pattern]) -> Pattern:
        """Each part, mapped and joined again."""
        return self._joined(part.mapped(change) for part in self.parts)

    def for_head(self, head: int) -> Pattern:
        """Each part's, joined again."""
        return self._joined(part.for_head(head) for part in self.parts)

    def until(self, end: int) -> Pattern:
        """Each part's, joined again."""
        return self._joined(part.until(end) for part in self.parts)


@dataclass(frozen=True, repr=False)
class And(_Combination):
    """The pairs that all of ``parts`` see; written ``a & b & c``."""

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """All say so."""
        return reduce(torch.logical_and, (part.visible(query, key, end) for part in self.parts))

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """What the parts share."""
        return reduce(Intervals.__and__, (part.intervals(query, end) for part in self.parts))

    def _joined(self, parts: Iterator[Pattern]) -> Pattern:
        """``Full()`` adds nothing to a conjunction, and one ``NOTHING`` decides it."""
        kept = tuple(part for part in parts if part != FULL)
        if NOTHING in kept:
            return NOTHING
        return reduce(Pattern.__and__, kept) if kept else FULL

    def written(self, tensor: Callable[[Tensor], str]) -> str:
        """``a & (b | c)``."""
        texts = [part.written(tensor) for part in self.parts]
        return " & ".join(f"({t})" if isinstance(p, Or) else t for p, t in zip(self.parts, texts, strict=True))


@dataclass(frozen=True, repr=False)
class Or(_Combination):
    """The pairs that any of ``parts`` sees; written ``a | b | c``."""

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """One says so."""
        return reduce(torch.logical_or, (part.visible(query, key, end) for part in self.parts))

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """What the parts hold together."""
        return reduce(Intervals.__or__, (part.intervals(query, end) for part in self.parts))

    def _joined(self, parts: Iterator[Pattern]) -> Pattern:
        """``NOTHING`` adds nothing to a disjunction, and one ``Full()`` decides it."""
        kept = tuple(part for part in parts if part != NOTHING)
        if FULL in kept:
            return FULL
        return reduce(Pattern.__or__, kept) if kept else NOTHING

    def written(self, tensor: Callable[[Tensor], str]) -> str:
        """``a & b | c``."""
        return " | ".join(part.written(tensor) for part in self.parts)


@dataclass(frozen=True, repr=False)
class Not(Pattern):
    """The pairs that ``part`` does not see; written ``~a``."""

    part: Pattern

    def __invert__(self) -> Pattern:
        """Not not a is a."""
        return self.part

    def __post_init__(self) -> None:
        object.__setattr__(self, "planes", self.part.planes)
        object.__setattr__(self, "device", self.part.device)

    def visible(self, query: Tensor, key: Tensor, end: int) -> Tensor:
        """It does not."""
        return ~self.part.visible(query, key, end)

    def intervals(self, query: Tensor, end: int) -> Intervals:
        """The rest of the keys."""
        return self.part.intervals(query, end).complement(end)

    def leaves(self, positive: bool = True) -> Iterator[tuple[Pattern, bool]]:
        """What the part adds, this removes."""
        yield from self.part.leaves(not positive)

    def mapped(self, change: Callable[[Pattern], Pattern]) -> Pattern:
        """The part mapped, and negated again."""
        return ~self.part.mapped(change)

    def for_head(self, head: int) -> Pattern:
        """The part's, negated again."""
        return ~self.part.for_head(head)

    def until(self, end: int) -> Pattern:
        """The part's, negated again."""
        return ~self.part.until(end)

    def check(self, q_end: int, end: int) -> None:
        """The part must fit."""
        self.part.check(q_end, end)

    def written(self, tensor: Callable[[Tensor], str]) -> str:
        """``~a`` or ``~(a & b)``."""
        text = self.part.written(tensor)
        return f"~({text})" if isinstance(self.part, _Combination) else f"~{text}"


FULL = Full()
NOTHING = ~FULL


def simplest(pattern: Pattern) -> Pattern:
    """``pattern`` with every named part replaced by its definition, down to the parts that have none."""

    def defined(part: Pattern) -> Pattern:
        definition = part.definition
        return part if definition is part else definition.mapped(defined)

    return pattern.mapped(defined)


def joint_planes(parts: tuple[Pattern, ...]) -> tuple[int, int]:
    """The parts' batch rows and heads, which must agree where they are not 1."""
    joint = []
    for axis, name in enumerate(("batch", "heads")):
        sizes = {part.planes[axis] for part in parts} - {1}
        require(len(sizes) <= 1, f"pattern {name}", sorted(sizes), "the same in every part that differs by it")
        joint.append(sizes.pop() if sizes else 1)
    return joint[0], joint[1]


def joint_device(parts: tuple[Pattern, ...]) -> torch.device | None:
    """The device of the parts that hold a tensor, which must be one."""
    devices = list(dict.fromkeys(part.device for part in parts if part.device is not None))
    require(len(devices) <= 1, "pattern devices", [str(device) for device in devices], "one device for all parts")
    return devices[0] if devices else None
