"""Few settings in which any two levels of any two of them meet."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any


def pairwise_settings(levels: Mapping[str, Sequence[Any]], seed: int) -> list[dict[str, Any]]:
    """One level for each name, again and again until every pair has met: greedy, best of some random candidates."""
    chance = random.Random(seed)
    names = list(levels)
    missing = {(a, x, b, y) for a, b in itertools.combinations(names, 2) for x in levels[a] for y in levels[b]}
    found = []
    while missing:
        a, x, b, y = chance.choice(sorted(missing, key=repr))
        candidates = [
            {name: chance.choice(choices) for name, choices in levels.items()} | {a: x, b: y} for _ in range(60)
        ]
        met = [{(p, c[p], r, c[r]) for p, r in itertools.combinations(names, 2)} & missing for c in candidates]
        best = max(range(len(candidates)), key=lambda n: len(met[n]))
        missing -= met[best]
        found.append(candidates[best])
    return found
