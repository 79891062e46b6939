"""Bytes that tensor parallelism sends, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.parallel.traffic import SHARES

LOSS_NUMBERS = 3
"""Of each token, in fp32: see :func:`toolkit.parallel.tensor.loss.vocabulary_nll`."""


@dataclass(frozen=True)
class SharedLayers:
    """A decoder of which a tensor group shares every layer.

    Attributes:
        ranks: processes of the group.
        tokens: of a batch.
        dim: width of a token.
        low: bytes of a number that a product gives.
        high: bytes of a number of the stream.
        layers: of two parts each, attention and feed-forward.
        again: those of them that the backward pass computes again, at least what is between their products.
        whole: bytes of the gradients of parameters that every process has and of whose gradient it computes a part.
        sequence_parallel: whether the stream is shared.
    """

    ranks: int
    tokens: int
    dim: int
    low: int
    high: int
    layers: int
    again: int
    whole: int
    sequence_parallel: bool = True


def shared_layers_bytes(shape: SharedLayers) -> dict[str, float]:
    """What each process sends in a training step, by the collective.

    Each part of a layer gathers its input and scatters the sum of its outputs; the backward pass does so with the
    gradients of outputs and inputs. A whole stream is summed instead, as many bytes. The embedding's sum is scattered,
    the head's input is gathered, and of each token three numbers are summed for its loss. A layer that is computed
    again stops at its last product, whose sum nothing reads.

    Source: Korthikanti et al. 2022 (arXiv 2205.05198), section 4.2.2.
    """
    numbers, parts = shape.dim * shape.tokens, 2 * shape.layers
    stream, product = shape.high * numbers, shape.low * numbers
    summed = stream + parts * product + (parts + 1) * stream + shape.again * product
    once, twice = SHARES["reduce_scatter"](shape.ranks), SHARES["all_reduce"](shape.ranks)
    whole = shape.whole + 4 * LOSS_NUMBERS * shape.tokens
    if not shape.sequence_parallel:
        return {"all_reduce": twice * (summed + whole)}
    gathered = (parts + 1) * stream + parts * product + stream + 2 * shape.again * stream
    return {
        "all_gather": once * gathered,
        "reduce_scatter": once * summed,
        "all_reduce": twice * whole,
    }
