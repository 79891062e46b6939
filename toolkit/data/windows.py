"""Fixed-length windows of a token array, as batches that are addressed by step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from toolkit.checks import require, require_positive
from toolkit.data.tokenizer import Tokens

Starts = npt.NDArray[np.int64]


class TokenWindows:
    """Training batches as a pure function of the step: a resumed run sees what an unbroken one would have.

    A window is ``context`` inputs and the token after them. Windows start ``context`` apart, so each token
    is a target at most once an epoch; an epoch visits each of its windows once, in an order and from a first
    offset below ``context`` drawn from (seed, epoch). A batch may end one epoch and begin the next.

    Args:
        tokens: token ids (tokens,), memory-mapped or not.
        context: tokens that the model sees at once.
        batch_size: windows in a batch over all ranks.
        seed: of the order; the same on every rank.
        rank: which process this is.
        world_size: how many processes share a batch.

    Raises:
        ValueError: ``context + 1`` exceeds the tokens, ``batch_size`` is not a multiple of ``world_size``,
            or a value is out of range.
    """

    def __init__(
        self, tokens: Tokens, context: int, batch_size: int, seed: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        require_positive(context=context, batch_size=batch_size, world_size=world_size)
        require(seed >= 0, "seed", seed, "at least 0")
        require(0 <= rank < world_size, "rank", rank, f"between 0 and world_size - 1 = {world_size - 1}")
        right = f"a multiple of world_size={world_size}"
        require(batch_size % world_size == 0, "batch_size", batch_size, right)
        _require_fits(tokens, context)
        self._tokens = np.asarray(tokens)  # the same memory map, without numpy's slower subclass
        self._context, self._seed = context, seed
        self._batch_size, self._rows = batch_size, batch_size // world_size
        self._first = rank * self._rows
        self._span = np.arange(context + 1)
        # Room for an offset of up to context - 1, except where the data are too short to spare it.
        self.windows_per_epoch = max(1, (len(tokens) - context) // context)
        self._offsets = min(context, len(tokens) - self.windows_per_epoch * context)
        self._epochs: dict[int, Starts] = {}

    def batch(self, step: int) -> torch.Tensor:
        """Give this rank's rows of the batch at ``step``: int64 (batch_size / world_size, context + 1).

        Row r of the whole batch is window ``step * batch_size + r`` of the endless sequence of epochs; rank k
        of n has rows k * batch_size / n up to (k + 1) * batch_size / n.

        Raises:
            ValueError: step is negative.
        """
        require(step >= 0, "step", step, "at least 0")
        index = step * self._batch_size + self._first
        pieces = []
        missing = self._rows
        while missing:
            epoch, place = divmod(index, self.windows_per_epoch)
            piece = self.starts(epoch)[place : place + missing]
            pieces.append(piece)
            index, missing = index + len(piece), missing - len(piece)
        starts = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return _gather(self._tokens, starts, self._span)

    def starts(self, epoch: int) -> Starts:
        """Give where each window of an epoch starts, in the order of visit: (windows_per_epoch,)."""
        if epoch not in self._epochs:
            if len(self._epochs) > 1:  # a batch that straddles needs two; the oldest goes
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = self._draw(epoch)
        return self._epochs[epoch]

    def _draw(self, epoch: int) -> Starts:
        # Raw bits and a sort: numpy keeps these from release to release, but not Generator.permutation.
        bits = np.random.PCG64(np.random.SeedSequence((self._seed, epoch))).random_raw(self.windows_per_epoch + 1)
        offset = int(bits[0]) % self._offsets
        order = np.argsort(bits[1:], kind="stable")
        return order * self._context + offset


def validation_windows(tokens: Tokens, context: int, count: int, block: int | None = None) -> torch.Tensor:
    """Give windows spread evenly from the first token to the last: int64 (count, context + 1).

    The same for every run. Starts are at least ``context`` apart, so no token is a target twice.

    Args:
        tokens: token ids (tokens,).
        context: tokens that the model sees at once.
        count: windows.
        block: spread blocks of so many tokens instead and cut each into windows that follow one another: contexts with
            one ``block`` and one ``count * context`` have the same targets. None: ``context``.

    Raises:
        ValueError: there are fewer than ``count`` such windows, or not even one, or they make no whole blocks.
    """
    block = context if block is None else block
    require_positive(context=context, count=count, block=block)
    require(block % context == 0, "block", block, f"a multiple of context={context}")
    _require_fits(tokens, block)
    most, pieces = (len(tokens) - 1) // block, block // context
    right = f"at most {most * pieces}, the windows of context={context} in {len(tokens)} tokens"
    require(count <= most * pieces, "count", count, right)
    require(count % pieces == 0, "count", count, f"a multiple of {pieces}, the windows in a block of {block} tokens")
    blocks = count // pieces
    first = np.arange(blocks) * (len(tokens) - 1 - block) // max(1, blocks - 1)
    starts = (first[:, None] + np.arange(pieces) * context).reshape(-1)
    return _gather(np.asarray(tokens), starts, np.arange(context + 1))


def _require_fits(tokens: Tokens, context: int) -> None:
    right = f"at most {len(tokens) - 1}: a window is context + 1 of the {len(tokens)} tokens"
    require(context < len(tokens), "context", context, right)


def _gather(tokens: Tokens, starts: Starts, span: Starts) -> torch.Tensor:
    return torch.from_numpy(tokens[starts[:, None] + span].astype(np.int64))
