"""Check of what a decoder's outputs depend on: nothing beyond the reach of its masks."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.attention import Causal, Pattern
from toolkit.attention.reach import reach
from toolkit.attention.selection import MoBA, NativeSparse, parse_sparsity
from toolkit.checks import require_positive
from toolkit.models import BlockConfig, Decoder
from toolkit.training.check.finding import Finding
from toolkit.training.check.support import Support, input_support

ROWS = 32
"""Outputs that are looked at; all of them where there are no more tokens."""


def check_masks(decoder: Decoder, length: int = 32, seed: int = 0) -> Finding:
    """Whether no output has a gradient to a token that the masks keep from it, nor to a later one.

    Asked of every layer alone, by its own mask, and of the whole model, by the reach of the masks one after another.
    Exactly 0 is asked for, in fp64 and eval mode, of a copy on random tokens. Of keys chosen by content all earlier
    ones are within reach, and so they are in a mixture of depths, whose pattern counts the tokens that were chosen.
    Masks that hide nothing but later tokens at this length were not put to the test: a warning.

    Args:
        decoder: the model; it is left as it is.
        length: tokens.
        seed: of the tokens, and of the outputs that are looked at.

    Raises:
        ValueError: if ``length`` is not positive.
    """
    require_positive(length=length)
    seen = [_seen(block) for block in decoder.config.blocks]
    support = input_support(decoder, length, seed, ROWS)
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    leak = _leak(support, seen, earlier)
    if leak:
        return Finding("masks", "fail", leak)
    share = float(support.model.sum() / earlier[support.rows].sum())
    outputs = f"{len(support.rows)} outputs of the model and of each of its {len(seen)} layers"
    figure = f"no leak in {outputs}; the model's reach {share:.0%} of the tokens before them, of {length}"
    untried = [layer for layer, each in enumerate(seen) if _hides_nothing(each, earlier)]
    if untried:
        words = f"the masks of layers {', '.join(map(str, untried))} hide none of so few, and were not tried"
        return Finding("masks", "warn", f"{figure}; {words}")
    return Finding("masks", "pass", figure)


def _leak(support: Support, seen: list[Pattern | MoBA | NativeSparse], earlier: Tensor) -> str:
    """The first of the layers, or else the model, that depends on what it must not, and on how much; or nothing."""
    parts = [(f"layer {layer}", depends, [seen[layer]]) for layer, depends in enumerate(support.layers)]
    for name, depends, masks in [*parts, ("the model", support.model, seen)]:
        reached = reach(masks, len(earlier))
        hidden, later = (int((depends & ~allowed[support.rows]).sum()) for allowed in (reached, earlier))
        if hidden or later:
            among = f"among {len(support.rows)} outputs of {name} at {len(earlier)} tokens"
            return f"{hidden} times a token that no mask lets through, {later} times a later one, {among}"
    return ""


def _hides_nothing(seen: Pattern | MoBA | NativeSparse, earlier: Tensor) -> bool:
    """Whether a mask that is meant to hide more than later tokens does not, of so few."""
    meant = isinstance(seen, Pattern) and seen != Causal()
    return meant and torch.equal(reach([seen], len(earlier)), earlier)


def _seen(block: BlockConfig) -> Pattern | MoBA | NativeSparse:
    """What the layer may see."""
    return Causal() if block.depth_capacity is not None else parse_sparsity(block.attention.pattern)
