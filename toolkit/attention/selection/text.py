"""Sparsity as text, for configs: a pattern, or a selection by content."""

from __future__ import annotations

from toolkit.attention.parse import parse_pattern
from toolkit.attention.patterns import Pattern
from toolkit.attention.selection.moba import MoBA
from toolkit.attention.selection.native_sparse import NativeSparse
from toolkit.calls import Calls

SELECTIONS: dict[str, type[MoBA] | type[NativeSparse]] = {"MoBA": MoBA, "NativeSparse": NativeSparse}


def parse_sparsity(text: str) -> Pattern | MoBA | NativeSparse:
    """What ``text`` writes: ``"Causal() & SlidingWindow(512)"`` or ``"MoBA(block=64, top_k=4)"``.

    The inverse of ``str``. Nothing is evaluated.

    Raises:
        ValueError: naming the text and what in it was not understood.

    >>> parse_sparsity("MoBA(64, top_k=4)")
    MoBA(block=64, top_k=4)
    """
    name = text.partition("(")[0].strip()
    if name not in SELECTIONS:
        return parse_pattern(text)
    selection: MoBA | NativeSparse = Calls("pattern", SELECTIONS, called="called with numbers").read(text)
    return selection
