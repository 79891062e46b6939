"""What a decoder makes of a context of given length: loss by position, sliding-window loss, passkeys by depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.checks import require, require_positive
from toolkit.data import LongFiles, Tokenizer, loss_by_position, sliding_perplexity
from toolkit.data.evaluation import NLL
from toolkit.data.synthetic import Passkey, score
from toolkit.models import Decoder

POSITION = "bits_per_byte_by_position"
SLIDING = "bits_per_byte_sliding"
PASSKEY = "passkey"
PASSKEY_TOKENS = "passkey_tokens"
SEED = 1_000_003
"""Of the passkeys asked; training has the run's."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How much each length is scored on.

    Attributes:
        min_bytes: the shortest validation file that is read.
        blocks: stretches of text, each as long as the longest context; the same at every length.
        depths: where the passkey is, 0 the start.
        rows: passkeys asked at each depth.
        batch_tokens: tokens at once, at least one row.

    Raises:
        ValueError: if a size is not positive or a depth outside 0..1.
    """

    min_bytes: int = 65536
    blocks: int = 32
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    rows: int = 40
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        require_positive(min_bytes=self.min_bytes, blocks=self.blocks, rows=self.rows, batch_tokens=self.batch_tokens)
        fits = len(self.depths) > 0 and all(0 <= depth <= 1 for depth in self.depths)
        require(fits and len(set(self.depths)) == len(self.depths), "depths", self.depths, "different, between 0 and 1")

    def batch(self, length: int) -> int:
        """Rows of ``length`` tokens at once."""
        return max(1, self.batch_tokens // length)


@dataclass(frozen=True)
class Score:
    """One figure: its metric, where in the context (a depth, positions ``"64-128"``), over how many rows or tokens."""

    metric: str
    at: str
    value: float
    rows: int


def text_blocks(files: LongFiles, tokenizer: Tokenizer, length: int, count: int) -> Tensor:
    """``count`` stretches of ``length`` + 1 tokens of the validation files, spread evenly over them: int64.

    Each lies within one file; none shares a target with another.

    Raises:
        ValueError: if the files hold fewer.
    """
    found = []
    for document in files.validation:
        tokens = torch.from_numpy(tokenizer.encode(document.text).astype("int64"))
        found += [tokens[at : at + length + 1] for at in range(0, len(tokens) - length, length)]
    right = f"at most {len(found)}, the stretches of {length} tokens in {len(files.validation)} validation files"
    require(count <= len(found), "evaluation.blocks", count, right)
    return torch.stack([found[index * len(found) // count] for index in range(count)])


def position_edges(trained: int, length: int) -> list[int]:
    """Buckets of positions up to ``length``: from a quarter of what was trained on, two for each doubling."""
    edges, octave = {0, length}, max(1, trained // 4)
    while octave < length:
        edges |= {edge for edge in (octave, octave * 3 // 2) if edge < length}
        octave *= 2
    return sorted(edges)


def evaluate(
    decoder: Decoder,
    length: int,
    trained: int,
    blocks: Tensor,
    byte_lengths: Tensor,
    keys: Passkey,
    first_id: int,
    config: EvaluationConfig,
) -> list[Score]:
    """Score ``decoder`` on contexts of ``length`` tokens; runs where its parameters are, in eval mode.

    Args:
        decoder: the model.
        length: tokens it reads at once, a divisor of the blocks'.
        trained: the length that buckets of positions are laid out for.
        blocks: :func:`text_blocks`, (count, longest + 1).
        byte_lengths: (text vocabulary,), bytes that each token stands for.
        keys: the passkeys; their length and depth are set here.
        first_id: the id of the passkeys' token 0.
        config: how much.
    """
    with _evaluating(decoder):
        return [
            *_by_position(decoder, length, trained, blocks, byte_lengths, config),
            _sliding(decoder, length, blocks, byte_lengths, config),
            *_passkeys(decoder, length, keys, first_id, config),
        ]


def _by_position(
    decoder: Decoder, length: int, trained: int, blocks: Tensor, byte_lengths: Tensor, config: EvaluationConfig
) -> Iterator[Score]:
    """Windows that tile the blocks, so that every length has the same targets."""
    pieces = (blocks.shape[1] - 1) // length
    windows = torch.cat([blocks[:, at * length : (at + 1) * length + 1] for at in range(pieces)])
    sizes = byte_lengths[windows[:, 1:]]
    for part in loss_by_position(
        lambda ids: _logits(decoder, ids), windows, position_edges(trained, length), config.batch(length)
    ):
        text = float(sizes[:, part.low : part.high].sum())
        yield Score(POSITION, f"{part.low}-{part.high}", part.nll.bits_per_byte(text), part.nll.tokens)


def _sliding(decoder: Decoder, length: int, blocks: Tensor, byte_lengths: Tensor, config: EvaluationConfig) -> Score:
    """Every token of the blocks given at most ``length`` before it, moved on by half a window."""
    total = NLL(0.0, 0)
    for block in blocks:
        stride = max(1, length // 2)
        total += sliding_perplexity(lambda ids: _logits(decoder, ids), block, length, stride, config.batch(length))
    return Score(SLIDING, "", total.bits_per_byte(float(byte_lengths[blocks[:, 1:]].sum())), total.tokens)


def _passkeys(decoder: Decoder, length: int, keys: Passkey, first_id: int, config: EvaluationConfig) -> Iterator[Score]:
    """Whole keys and their digits, by depth; the answer is the likeliest of all ids, those of text included."""
    for depth in config.depths:
        task = Passkey(length, depth, keys.digits, keys.words)
        result = score(
            lambda ids: _logits(decoder, ids + first_id).argmax(dim=-1) - first_id,
            task, config.rows, SEED, config.batch(length),
        )  # fmt: skip
        yield Score(PASSKEY, f"{depth:g}", result.exact, config.rows)
        yield Score(PASSKEY_TOKENS, f"{depth:g}", result.accuracy, config.rows * keys.digits)


def scored_tokens(lengths: Sequence[int], config: EvaluationConfig) -> dict[int, int]:
    """Tokens that go through the model at each length, overlaps of windows included."""
    longest = max(lengths)
    return {
        length: config.blocks * (longest + length + 2 * (longest - length)) + config.rows * len(config.depths) * length
        for length in lengths
    }


def _logits(decoder: Decoder, ids: Tensor) -> Tensor:
    device = next(decoder.parameters()).device
    logits: Tensor = decoder(ids.to(device)).logits
    return logits


@contextmanager
def _evaluating(decoder: Decoder) -> Iterator[None]:
    mode = decoder.training
    decoder.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        decoder.train(mode)
