"""A model's size chosen such that a token costs given FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import takewhile
from math import log

from toolkit.checks import require
from toolkit.compute import cost
from toolkit.models import DecoderConfig

TOLERANCE = 0.01
"""FLOPs per token may differ from those asked for by this share."""

SizedDecoder = Callable[[int, int], DecoderConfig]
"""The decoder of a width and a hidden width of its feed-forwards."""


def size_for_flops(
    decoder: SizedDecoder, dims: Iterable[int], ratio: float, context: int, flops: float
) -> DecoderConfig:
    """The decoder whose training FLOPs per token are ``flops``, ``exact`` convention, of the usual proportions.

    FLOPs are linear in the feed-forward's hidden width, which meets them at each width; of the widths, the one that
    leaves the feed-forward nearest to ``ratio`` times as wide as the model is taken.

    Args:
        decoder: what a width and a hidden width make.
        dims: widths to try, ascending; those beyond the first that costs too much are not looked at.
        ratio: hidden width / width that is wished for.
        context: tokens of a sequence.
        flops: per token.

    Raises:
        ValueError: if no width and hidden width cost ``flops`` within 1%.
    """

    def costs(dim: int, hidden_dim: int) -> float:
        return cost(decoder(dim, hidden_dim), context).training_flops["exact"]

    found = []
    for dim in takewhile(lambda dim: costs(dim, 1) <= flops, dims):
        least = costs(dim, 1)
        hidden_dim = 1 + round((flops - least) / (costs(dim, 2) - least))
        if abs(costs(dim, hidden_dim) / flops - 1) <= TOLERANCE:
            found.append((dim, hidden_dim))
            if hidden_dim <= ratio * dim:
                break  # the wider the model, the narrower its feed-forward: the next ones are further from the ratio
    right = f"what some width and hidden width cost within {TOLERANCE:.0%}: the arm has none such at context={context}"
    require(bool(found), "flops", flops, right)
    return decoder(*min(found, key=lambda size: abs(log(size[1] / size[0] / ratio))))
