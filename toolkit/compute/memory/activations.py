"""Bytes that a layer keeps of one batch for its backward pass, whole or by what it computes again."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from toolkit.compute.memory.feed_forward import feed_forward_bytes, feed_forward_outputs, shown_bytes
from toolkit.compute.memory.spread import Spread
from toolkit.layers import Block, MixtureOfDepths, MoE
from toolkit.models import BlockConfig, DecoderConfig
from toolkit.routing import SoftRouter


@dataclass(frozen=True)
class Tokens:
    """A batch as one process has it.

    Attributes:
        batch_size: sequences.
        seq_len: tokens of each that this process computes.
        low: bytes of a number that a product reads.
        spread: the processes.
        high: bytes of a number between layers: parameters gathered in bf16 take tokens in bf16.
    """

    batch_size: int
    seq_len: int
    low: int
    spread: Spread
    high: int = 4

    @property
    def count(self) -> int:
        """Tokens."""
        return self.batch_size * self.seq_len

    def share(self, part: int, parts: int) -> Tokens:
        """The same with ``part`` of ``parts`` of the sequences."""
        return replace(self, batch_size=self.batch_size * part // parts)

    def stream(self, width: int) -> int:
        """Bytes of ``width`` numbers a token, of the residual stream's part."""
        return self.high * width * self.count // self.spread.stream


def kept_bytes(block: BlockConfig, layer: nn.Module, dim: int, tokens: Tokens, policy: str) -> int:
    """Bytes that one layer keeps from its forward pass until its backward pass.

    Args:
        block: its config.
        layer: it, built on any device.
        dim: width of a token.
        tokens: the batch.
        policy: ``"none"``; ``"full"``, its input; ``"selective"``, its input and what its products, attention and
            experts gave.
    """
    if policy == "none":
        return layer_bytes(block, layer, dim, tokens)
    kept = tokens.stream(dim) + _shown_bytes(layer, tokens)
    return kept if policy == "full" else kept + _outputs(block, layer, dim, tokens)


def rerun_bytes(block: BlockConfig, layer: nn.Module, dim: int, tokens: Tokens, policy: str) -> int:
    """Bytes that come to those kept while the layer is computed again: all of its own, at most."""
    if policy == "none":
        return 0
    return max(0, layer_bytes(block, layer, dim, tokens) - kept_bytes(block, layer, dim, tokens, policy))


def output_bytes(config: DecoderConfig, tokens: Tokens) -> int:
    """Bytes kept behind the last layer: its norm, what the head reads, and log-probabilities in fp32.

    Every process of a tensor group has the whole of what the head reads, and in place of log-probabilities the logits
    of its stretch of the vocabulary, as the head gave them.
    """
    tensor = tokens.spread.tensor
    logits = 4 * config.vocab_size if tensor == 1 else tokens.low * config.vocab_size // tensor
    return _norm_bytes(config.dim, tokens) + tokens.count * logits


def layer_bytes(block: BlockConfig, layer: nn.Module, dim: int, tokens: Tokens) -> int:
    """Bytes that a layer keeps of which nothing is computed again.

    Of one that only some tokens go through, also their way in and out.
    """
    if isinstance(layer, Block):
        return _block_bytes(block, layer, dim, tokens)
    assert isinstance(layer, MixtureOfDepths)
    chosen, width = replace(tokens, seq_len=layer.router.count(tokens.seq_len)), max(8, dim // 8)
    kept = _block_bytes(block, layer.block, dim, chosen)
    kept += chosen.count * (3 * 4 * dim + 8 * dim)  # before, after, their difference; int64 indices
    # inside the predictor: pre-activation and activation, in fp32
    return kept + tokens.count * 4 * (2 * width + 3)


def _block_bytes(block: BlockConfig, layer: Block, dim: int, tokens: Tokens) -> int:
    """Bytes that one layer keeps: its two norms, its attention, its feed-forward."""
    queries, keys = _widths(block, dim)
    # q, k, v after rotation, the output as attention gives it and as o_proj reads it, and the log-sum-exp. What
    # a choice by content gathers on its way is not counted.
    attention = tokens.low * (3 * queries + keys) + 4 * block.attention.heads
    if block.attention.qk_norm:  # what it normalises, as a view of all that was projected, and what that gives
        attention += tokens.low * (queries + keys) + 4 * (queries + keys // 2)
    kept = 2 * _norm_bytes(dim, tokens) + tokens.count * attention // tokens.spread.tensor
    if isinstance(layer.feed_forward, MoE):
        kept += tokens.count * dim * _read_apart(layer.feed_forward, tokens)
    return kept + feed_forward_bytes(
        layer.feed_forward,
        tokens.low,
        tokens.batch_size,
        tokens.seq_len,
        tensor=tokens.spread.tensor,
        expert=tokens.spread.expert,
    )


def _read_apart(moe: MoE, tokens: Tokens) -> int:
    """Bytes of a number of a MoE's input that are kept beside, or less than, what products read once.

    A router that learns reads it before it is cast. Experts that are shared read rows of it, which are theirs.
    """
    if isinstance(moe.router, SoftRouter):
        return 0
    learns, cast = any(True for _ in moe.router.parameters()), tokens.low < tokens.high
    sent = tokens.spread.expert > 1 and (cast or not (learns or moe.shared is not None))
    return tokens.high * (learns and cast) - tokens.low * sent


def _shown_bytes(layer: nn.Module, tokens: Tokens) -> int:
    """What is left of routing for statistics."""
    layer, tokens = _through(layer, tokens)
    return shown_bytes(layer.feed_forward, tokens.batch_size, tokens.seq_len)


def _through(layer: nn.Module, tokens: Tokens) -> tuple[Block, Tokens]:
    """The block inside, and the tokens that go through it."""
    if isinstance(layer, MixtureOfDepths):
        return layer.block, replace(tokens, seq_len=layer.router.count(tokens.seq_len))
    assert isinstance(layer, Block)
    return layer, tokens


def _outputs(block: BlockConfig, layer: nn.Module, dim: int, tokens: Tokens) -> int:
    """Bytes of what ``"selective"`` keeps of a layer's operators."""
    predictor = 0
    if isinstance(layer, MixtureOfDepths):
        predictor = tokens.count * 4 * (max(8, dim // 8) + 2)  # two products; the router's score is one more
    layer, tokens = _through(layer, tokens)
    queries, keys = _widths(block, dim)
    shared = tokens.low * (2 * queries + keys) + 4 * block.attention.heads  # q, k, v; out and log-sum-exp
    kept = tokens.count * (shared // tokens.spread.tensor + tokens.low * dim)  # and o_proj's
    return (
        predictor
        + kept
        + feed_forward_outputs(
            layer.feed_forward,
            tokens.low,
            tokens.batch_size,
            tokens.seq_len,
            tensor=tokens.spread.tensor,
            expert=tokens.spread.expert,
        )
    )


def _norm_bytes(dim: int, tokens: Tokens) -> int:
    """The stream's part and its normalised form, in fp32 whatever it is in, and what the next product reads, whole."""
    return 4 * 2 * dim * tokens.count // tokens.spread.stream + tokens.low * dim * tokens.count


def _widths(block: BlockConfig, dim: int) -> tuple[int, int]:
    """Of all queries, and of all keys and values."""
    attention = block.attention
    head_dim = attention.head_dim or dim // attention.heads
    return attention.heads * head_dim, 2 * attention.key_heads * head_dim
