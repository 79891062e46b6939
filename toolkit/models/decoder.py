"""The decoder: embedding, layers, final norm and head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.attention import KeyValueCache
from toolkit.checks import require, require_positive
from toolkit.layers import MoE, Sequences
from toolkit.models.build import build_block, initialise
from toolkit.models.config import DecoderConfig
from toolkit.models.mup import learning_rate_factors, width_ratio
from toolkit.work import Work

IGNORED = -100
"""Stands in labels for none, as in torch's ``cross_entropy``."""


@dataclass(frozen=True)
class DecoderOutput:
    """What a forward gives.

    Attributes:
        logits: (batch, length, vocab_size).
    """

    logits: Tensor

    def nll(self, labels: Tensor) -> Tensor:
        """labels int64 (batch, length), -100 for none -> the negative log-likelihood of each in nats, the same shape.

        In fp32 at least; 0 where there is no label. Ask for it rather than for logits where a loss is all that is
        wanted: a decoder whose vocabulary is spread over processes need not gather them.
        """
        exact = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        each = F.cross_entropy(exact.flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORED)
        return each.view_as(labels)


class Decoder(nn.Module):
    """A pre-norm decoder-only transformer built from a :class:`DecoderConfig`.

    Raises:
        ValueError: with ``mup_base_dim``, if a layer has a parameter for which no muP rule is known.

    >>> from toolkit.models import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig
    >>> block = BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(hidden_dim=64))
    >>> decoder = Decoder(DecoderConfig(vocab_size=256, dim=32, blocks=(block, block)))
    >>> decoder(torch.zeros(1, 8, dtype=torch.long)).logits.shape
    torch.Size([1, 8, 256])
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        layers = (build_block(block, config.dim, config.norm_eps, config.vocab_size) for block in config.blocks)
        self.blocks = nn.ModuleList(layers)
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.head = None if config.tied_head else nn.Linear(config.dim, config.vocab_size, bias=False)
        learning_rate_factors(self, config)  # refuses what muP does not know
        initialise(self, config)

    def forward(
        self,
        input_ids: Tensor,
        cache: KeyValueCache | None = None,
        *,
        valid: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        sequences: Sequences | None = None,
    ) -> DecoderOutput:
        """input_ids (batch, length) int64 -> logits (batch, length, vocab_size).

        With ``valid`` or ``sequence_ids`` a token's logits, and what routers count of it, are those it has in its own
        document alone: attention stays within it, and positions restart. At padding, whose ids may be any numbers,
        logits are finite and mean nothing.

        Args:
            input_ids: the tokens; with a ``cache``, the next after those it holds.
            cache: keys and values of the tokens before.
            valid: bool (batch, length), False for padding, on either side.
            sequence_ids: int64 (batch, length), the document each token is of, for several packed into a row; -1 is
                padding.
            sequences: what layers are told of the tokens, where it is known already, in place of the two before: such
                as the positions and documents of a part of each row.

        Raises:
            ValueError: if input_ids are not (batch, length); if ``valid`` or ``sequence_ids`` is of another shape or
                dtype, or a document's tokens are not side by side, or one of the two stands beside a cache, or with a
                layer that knows no documents (global_projections, keys chosen by content); with ``sequence_ids`` from
                a ``SoftRouter``; if ``sequences`` stands beside any of the three, or has no token ids.
        """
        require(input_ids.ndim == 2, "input_ids.shape", tuple(input_ids.shape), "(batch, length)")
        for name, table in (("valid", valid), ("sequence_ids", sequence_ids)):
            shape = None if table is None else tuple(table.shape)
            require(shape in (None, input_ids.shape), f"{name}.shape", shape, f"input_ids', {tuple(input_ids.shape)}")
            require(table is None or cache is None, name, shape, "None with a cache, whose rows hold one sequence each")
        if sequences is None:
            sequences = Sequences.of(input_ids, valid=valid, sequence_ids=sequence_ids)
        else:
            alone = valid is None and sequence_ids is None and cache is None
            require(alone, "sequences", "given", "None beside valid, sequence_ids or a cache")
            require(sequences.token_ids is not None, "sequences.token_ids", None, "input_ids, 0 for padding")
        x = self.embedding(sequences.token_ids)
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer, sequences)
        weight = self.embedding.weight if self.head is None else self.head.weight
        state, ratio = self.norm(x), width_ratio(self.config)
        return DecoderOutput(F.linear(state if ratio == 1 else ratio * state, weight))

    def work(self, seq_len: int) -> list[Work]:
        """Every product of a forward over one sequence; looking up the embedding is none."""
        layers = [part for block in self.blocks for part in block.work(seq_len)]  # type: ignore[operator]
        return [*layers, Work.dense("head", seq_len * self.config.dim * self.config.vocab_size)]

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue each row by ``max_new_tokens`` tokens, one at a time over a cache.

        Shapes: input_ids (batch, length) int64 -> (batch, length + max_new_tokens). Decodes in eval mode, whatever the
        mode before, which is then restored: no noise, nothing dropped, no router learns from it.

        Args:
            input_ids: the prompt.
            max_new_tokens: how many tokens to add.
            temperature: divides the logits; 0 takes the likeliest token.
            top_k: sample among the ``top_k`` likeliest only.
            generator: source of the randomness.

        Raises:
            ValueError: if the prompt is empty, ``max_new_tokens`` not positive, ``temperature`` negative,
                or ``top_k`` not within the vocabulary, or a router reads later tokens in evaluation too.
        """
        require(
            input_ids.ndim == 2 and input_ids.shape[1] > 0,
            "input_ids.shape",
            tuple(input_ids.shape),
            "(batch, length) with a prompt of at least one token",
        )
        require_positive(max_new_tokens=max_new_tokens)
        require(temperature >= 0, "temperature", temperature, "0 or more")
        vocab_size = self.config.vocab_size
        require(top_k is None or 0 < top_k <= vocab_size, "top_k", top_k, f"1 to vocab_size={vocab_size}, or None")
        _require_causal(self)
        cache, fresh = KeyValueCache(), input_ids
        with _evaluating(self):
            for _ in range(max_new_tokens):
                logits = self(fresh, cache).logits[:, -1]
                fresh = _sample(logits, temperature, top_k, generator)
                input_ids = torch.cat([input_ids, fresh], dim=1)
        return input_ids


def _require_causal(model: nn.Module) -> None:
    for path, moe in model.named_modules():
        if isinstance(moe, MoE):
            for part in (moe.router, *moe.adjust):
                right = "one whose evaluation reads no later token, to be decoded (see its `causal`)"
                require(getattr(part, "causal", "always") != "never", f"{path}.router", type(part).__name__, right)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _sample(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """logits (batch, vocab_size) -> token (batch, 1)."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    if top_k is not None:
        kept = torch.topk(logits, top_k)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, kept.indices, kept.values)
    return torch.multinomial(torch.softmax(logits.float() / temperature, dim=-1), 1, generator=generator)
