"""Bytes that tensor parallelism sends, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.parallel.traffic import SHARES


@dataclass(frozen=True)
class SharedLayers:
    """A decoder of which a tensor group shares every layer.

    Attributes:
        ranks: processes of the group.
        tokens: of a batch.
        dim: width of a token.
        low: bytes of a number that a product gives; the stream has 4.
        layers: of two parts each, attention and feed-forward.
        again: those of them that the backward pass computes again, at least what is between their products.
        vocab_size: logits of a token.
        whole: parameters, in numbers, that every process has and of whose gradient it computes a part.
        sequence_parallel: whether the stream is shared.
    """

    ranks: int
    tokens: int
    dim: int
    low: int
    layers: int
    again: int
    vocab_size: int
    whole: int
    sequence_parallel: bool = True


def shared_layers_bytes(shape: SharedLayers) -> dict[str, float]:
    """What each process sends in a training step, by the collective.

    Each part of a layer gathers its input and scatters the sum of its outputs; the backward pass does so with the
    gradients of outputs and inputs. A whole stream is summed instead, as many bytes. The embedding's sum is scattered,
    the head's input and the logits are gathered. A layer that is computed again stops at its last product, whose sum
    nothing reads.

    Source: Korthikanti et al. 2022 (arXiv 2205.05198), section 4.2.2.
    """
    parts, stream, product = 2 * shape.layers, 4 * shape.dim * shape.tokens, shape.low * shape.dim * shape.tokens
    summed = stream + parts * product + (parts + 1) * stream + shape.again * product
    once, twice = SHARES["reduce_scatter"](shape.ranks), SHARES["all_reduce"](shape.ranks)
    logits = once * shape.low * shape.vocab_size * shape.tokens
    if not shape.sequence_parallel:
        return {"all_gather": logits, "all_reduce": twice * (summed + 4 * shape.whole)}
    gathered = (parts + 1) * stream + parts * product + stream + 2 * shape.again * stream
    return {
        "all_gather": once * gathered + logits,
        "reduce_scatter": once * summed,
        "all_reduce": twice * 4 * shape.whole,
    }
