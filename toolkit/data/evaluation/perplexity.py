"""Sliding-window perplexity: each token scored once, the sum of NLL over the number of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.checks import require, require_positive
from toolkit.data.examples import LogitsOf


@dataclass(frozen=True)
class NLL:
    """Negative log-likelihood of some tokens.

    Attributes:
        nll_sum: nats, summed.
        tokens: how many were scored.
    """

    nll_sum: float
    tokens: int

    def __add__(self, other: NLL) -> NLL:
        """Over the tokens of both, as for several files: sums add, perplexities do not."""
        return NLL(self.nll_sum + other.nll_sum, self.tokens + other.tokens)

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.nll_sum / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(mean)."""
        return math.exp(self.mean)

    def bits_per_byte(self, length: float) -> float:
        """Bits for each of the ``length`` bytes that the scored tokens stand for (``Tokenizer.byte_lengths``).

        Raises:
            ValueError: length is not positive.
        """
        require_positive(length=length)
        return self.nll_sum / math.log(2.0) / length


def token_nll(logits_of: LogitsOf, windows: Tensor) -> Tensor:
    """NLL in nats of each token of windows (batch, context + 1) but the first: (batch, context), fp32 at least."""
    logits = logits_of(windows[:, :-1])
    compute = torch.promote_types(logits.dtype, torch.float32)
    targets = windows[:, 1:].to(logits.device)
    return F.cross_entropy(logits.to(compute).transpose(1, 2), targets, reduction="none")


def sliding_perplexity(logits_of: LogitsOf, tokens: Tensor, window: int, stride: int, batch_size: int = 1) -> NLL:
    """NLL of every token but the first, each scored exactly once, given at most ``window`` tokens before it.

    The first window scores all that follow its inputs; each later one is moved on by ``stride`` and scores only what
    is new. A token beyond the first window thus sees between window - stride + 1 and window tokens, and exactly window
    with stride 1. The last window is moved back to end at the end, so that it sees no less. With
    window >= length - 1 it is the plain NLL.

    Press et al. (2021), Shortformer. The result is sum of NLL / tokens, not a mean of windows' means, in
    which a short last window would weigh as much as the others.

    Args:
        logits_of: the model, called without gradients with (up to ``batch_size``, up to ``window``) ids.
        tokens: ids (length,) int64.
        window: tokens that the model sees at once.
        stride: new tokens a window, 1..window.
        batch_size: windows at once.

    Raises:
        ValueError: fewer than 2 tokens, or a value is out of range.
    """
    require(tokens.dim() == 1 and len(tokens) >= 2, "tokens", tuple(tokens.shape), "one axis of at least 2 tokens")
    require_positive(window=window, batch_size=batch_size)
    require(1 <= stride <= window, "stride", stride, f"between 1 and window={window}: each token is scored")
    window = min(window, len(tokens) - 1)
    plan = list(_windows(len(tokens) - 1, window, stride))
    total = 0.0
    with torch.no_grad():
        for first in range(0, len(plan), batch_size):
            part = plan[first : first + batch_size]
            nll = token_nll(logits_of, torch.stack([tokens[start : start + window + 1] for start, _ in part]))
            total += sum(float(row[window - new :].double().sum()) for row, (_, new) in zip(nll, part, strict=True))
    return NLL(total, sum(new for _, new in plan))


def _windows(targets: int, window: int, stride: int) -> Iterator[tuple[int, int]]:
    """Where each window starts and how many of its last targets are new."""
    yield 0, window
    done = window
    while done < targets:
        new = min(stride, targets - done)
        done += new
        yield done - window, new
