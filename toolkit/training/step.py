"""The loss of one batch, the same in training, probing and tests."""

from __future__ import annotations

from torch import Tensor

from toolkit.checks import require_choice
from toolkit.data.examples import NOT_ASKED, Examples, as_examples
from toolkit.layers import auxiliary_losses
from toolkit.models import Decoder, DecoderOutput


def next_token_nll(decoder: Decoder, batch: Tensor | Examples, reduction: str = "mean") -> Tensor:
    """Negative log-likelihood in nats of each token that is asked given those before it.

    Shapes: windows (batch, context + 1) int64, or Examples (batch, context) -> scalar for ``"mean"`` and ``"sum"``,
    (batch * context,) for ``"none"``, 0 where nothing is asked. In fp32 at least. The mean is over tokens for windows;
    for Examples it is the mean over rows of each row's mean, so that a row weighs the same however much of it is asked;
    rows of which nothing is asked are left out.
    """
    input_ids, labels = as_examples(batch)
    return _reduced(decoder(input_ids).nll(labels), labels, reduction, by_rows=not isinstance(batch, Tensor))


def nll_of(logits: Tensor, labels: Tensor, reduction: str = "mean", *, by_rows: bool = False) -> Tensor:
    """:func:`next_token_nll` from logits (batch, length, vocab_size); ``by_rows`` as for Examples."""
    return _reduced(DecoderOutput(logits).nll(labels), labels, reduction, by_rows=by_rows)


def _reduced(each: Tensor, labels: Tensor, reduction: str, *, by_rows: bool) -> Tensor:
    """each (batch, length), of every label."""
    require_choice("reduction", reduction, ("mean", "sum", "none"))
    if reduction == "none":
        return each.flatten()
    asked = (labels != NOT_ASKED).sum(dim=1)
    if reduction == "sum":
        return each.sum()
    if not by_rows:
        return each.sum() / asked.sum().clamp(min=1)
    of_rows = each.sum(dim=1) / asked.clamp(min=1)
    return of_rows.sum() / (asked > 0).sum().clamp(min=1)


def training_loss(decoder: Decoder, batch: Tensor | Examples) -> tuple[Tensor, Tensor]:
    """The loss to minimise and, detached, its part without the routers': nats per token, see :func:`next_token_nll`.

    Of several processes or micro-batches the mean of their means is the batch's where each has as many tokens, or of
    Examples as many rows that ask something: windows and :class:`toolkit.data.TaskMixture` see to that.
    """
    nll = next_token_nll(decoder, batch)
    return nll + sum(auxiliary_losses(decoder).values()), nll.detach()
