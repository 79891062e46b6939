"""Mixture-of-depths: a decoder layer that only some tokens of a sequence go through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.attention import Causal, KeyValueCache, Pattern
from toolkit.checks import require
from toolkit.layers.attending import Sparsity
from toolkit.layers.block import Block
from toolkit.layers.depth_router import DepthChoice, DepthRouter
from toolkit.layers.depth_stats import DepthStats
from toolkit.layers.joined import join_losses
from toolkit.layers.moe import MoE
from toolkit.layers.packed_sequences import Sequences
from toolkit.work import Work

CHECKED = 1024
"""Positions over which a pattern is held to be causal."""


class MixtureOfDepths(nn.Module):
    """A decoder layer that the chosen tokens of a sequence go through, while the others pass it by unchanged.

    With f the update that ``block`` makes, block(x) = x + f(x), and X the chosen tokens (equation 1 of the paper):

        x_t' = x_t + r_t f(X)_t   if t is chosen,   x_t' = x_t   if not.

    :class:`toolkit.layers.depth_router.DepthRouter` says how r is computed and tokens are chosen: in training by
    looking at the whole sequence, in evaluation by a predictor that is causal. Chosen tokens attend to chosen tokens
    only. They keep their positions in the rotary embedding; otherwise the block takes them as its sequence, so that
    "the 8 newest keys" of a window, or the size of a cache, are counts of chosen tokens.

    It is called as ``Block`` is. Over a cache only chosen tokens enter this layer's part of it; as rows would then
    hold different numbers of keys, that takes one sequence at a time. In evaluation without a cache rows may differ:
    they are padded on the right, where a causal pattern sees nothing, and a MoE is told what is padding. Of a batch
    that is padded itself, padding is never chosen nor counted, and passes unchanged; of packed documents each is
    chosen from, and goes through the block, as it would alone.

    Args:
        block: the layer; its pattern must be causal and hold no tensor (the tensor's positions would be those of all
            tokens).
        dim: width of a token.
        capacity, predictor_dim, coefficient: see ``DepthRouter``.

    Raises:
        ValueError: if the pattern is not causal or holds a tensor, or as ``DepthRouter`` does.

    Source: Raposo et al. 2024 (arXiv 2404.02258), who wrap every other layer.

    >>> from toolkit.layers import SelfAttention, SwiGLU
    >>> layer = MixtureOfDepths(Block(16, SelfAttention(16, 2), SwiGLU(16, 32)), 16, capacity=0.25)
    >>> x = torch.randn(3, 8, 16)
    >>> int((layer(x) != x).any(-1).sum())
    6
    """

    def __init__(
        self,
        block: Block,
        dim: int,
        capacity: float = 0.125,
        predictor_dim: int | None = None,
        coefficient: float = 0.01,
    ) -> None:
        super().__init__()
        _require_causal(block.attention.pattern)
        self.block = block
        self.router = DepthRouter(dim, capacity, predictor_dim, coefficient)
        self._choice: DepthChoice | None = None

    def forward(
        self,
        x: Tensor,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        sequences: Sequences | None = None,
    ) -> Tensor:
        """x (batch, length, dim) -> (batch, length, dim); the arguments are those of :meth:`Block.forward`.

        Raises:
            ValueError: with a ``cache`` in training mode, whose rule needs the whole sequence, or for a batch, or
                beside padding or packed documents; or as the block does.
        """
        sequences = Sequences() if sequences is None else sequences
        sequences.require_fit(x)
        start = 0 if cache is None else self._advance(x, cache, layer, sequences)
        choice = self.router(x, sequence_ids=sequences.sequence_ids, valid=sequences.valid)
        if choice.index.shape[1]:
            y = self._through(x, choice, cache, layer, sequences.at(choice.index, choice.valid, start))
        else:
            y = self._past(x, sequences)
        y, losses = join_losses(y, choice.losses)
        self._choice = replace(choice, losses=losses)
        return y

    def _past(self, x: Tensor, sequences: Sequences) -> Tensor:
        """x (batch, length, dim), unchanged: no token goes through the block.

        A MoE in it runs on none of the tokens, forward and backward, where other processes wait for it; elsewhere what
        it shows of its last forward would be another's.
        """
        moe = self.block.feed_forward
        if not isinstance(moe, MoE):
            return x
        if moe.is_collective:
            told = {name: None if table is None else table[:, :0] for name, table in sequences.routed.items()}
            return torch.cat([x, moe(x[:, :0], **told)], dim=1)
        moe._assignment = None
        return x

    def _through(
        self,
        x: Tensor,
        choice: DepthChoice,
        cache: KeyValueCache | None,
        layer: int,
        sequences: Sequences,
    ) -> Tensor:
        """x (batch, length, dim), the chosen of which, that ``sequences`` tells of, go through the block."""
        index = choice.index[..., None].expand(-1, -1, x.shape[2])
        chosen = x.gather(1, index)
        out = self.block(chosen, cache, layer, sequences)
        weight = choice.weight.gather(1, choice.index)[..., None]
        moved = torch.lerp(chosen, out, weight.to(out.dtype))  # x + r (block(x) - x), exactly the block's where r is 1
        if choice.valid is not None:
            moved = torch.where(choice.valid[..., None], moved, chosen)
        return x.scatter(1, index, moved)

    def _advance(self, x: Tensor, cache: KeyValueCache, layer: int, sequences: Sequences) -> int:
        """Note in the cache that x's tokens have come, whether or not they are chosen; the position of the first."""
        require(
            not self.training, "cache", cache, "None in training mode, which chooses among a whole sequence: .eval()"
        )
        require(
            len(x) == 1, "x.shape[0]", len(x), "1 with a cache: sequences of a batch hold different numbers of keys"
        )
        alone = sequences.documents is None
        require(alone, sequences.named, tuple(x.shape[:2]), "None with a cache, whose rows hold one sequence each")
        clock = ~layer  # a layer of the cache that no block has, with keys of no width
        start = cache.length(clock)
        cache.append(clock, *(x.new_empty(1, 1, x.shape[1], 0) for _ in range(2)))
        return start

    def __getstate__(self) -> dict[str, Any]:
        """Without the last forward, whose graph can be neither copied nor pickled."""
        return {**self.__dict__, "_choice": None}

    @property
    def attention(self) -> nn.Module:
        """The block's."""
        return self.block.attention

    @property
    def feed_forward(self) -> nn.Module:
        """The block's."""
        return self.block.feed_forward

    @property
    def choice(self) -> DepthChoice:
        """What the last forward chose.

        Raises:
            ValueError: if there has been no forward.
        """
        if self._choice is None:
            raise ValueError("choice: this layer has not run yet; call it on some input first")
        return self._choice

    @property
    def has_run(self) -> bool:
        """Whether there is a last forward."""
        return self._choice is not None

    @property
    def losses(self) -> dict[str, Tensor]:
        """The predictor's loss of the last training forward, already times its coefficient; the block's are its own."""
        return {} if self._choice is None else self._choice.losses

    @property
    @torch.no_grad()
    def stats(self) -> DepthStats:
        """What the last forward chose of its tokens, padding left out. Its shares wait for the device.

        Raises:
            ValueError: if there has been no forward.
        """
        choice = self.choice
        predicted = choice.prediction > 0
        best = self.router.best(choice.weight, choice.sequence_ids, choice.real)
        return DepthStats.of(choice.selected, predicted, best, choice.real)

    def work(self, seq_len: int) -> list[Work]:
        """The router and predictor over all tokens, the block over the C that training chooses."""
        return [*self.router.work(seq_len), *self.block.work(self.router.count(seq_len))]


def _require_causal(pattern: Sparsity) -> None:
    if not isinstance(pattern, Pattern):
        return  # those that choose keys by content look back only
    right = "a pattern without tensors: their positions would be those of all tokens"
    require(pattern.device is None, "block.attention.pattern", pattern, right)
    with torch.device("cpu"):  # areas are numbers, also where the model is built on the meta device
        seen, behind = (each.area(CHECKED, CHECKED) for each in (pattern, pattern & Causal()))
    require(seen == behind, "block.attention.pattern", pattern, f"causal, such as Causal() & {pattern}")
