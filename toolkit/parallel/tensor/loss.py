"""The loss of a decoder whose head is shared by rows of the vocabulary: no process ever has all logits of a token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from toolkit.checks import refuse_double_backward, require
from toolkit.models.decoder import IGNORED
from toolkit.routing.reduce import all_reduce


@dataclass(frozen=True, eq=False)
class SharedLogits:
    """What a decoder gives under tensor parallelism, in the place of a ``DecoderOutput``: logits that are shared.

    Attributes:
        stretch: DTensor (batch, length, vocab_size), cut along the vocabulary: each process has its stretch.
    """

    stretch: DTensor

    @cached_property
    def logits(self) -> Tensor:
        """(batch, length, vocab_size), whole in every process: a collective call, that all of a tensor group make."""
        return self.stretch.redistribute(placements=[Replicate()]).to_local()

    def nll(self, labels: Tensor) -> Tensor:
        """As :meth:`toolkit.models.DecoderOutput.nll`, from stretches: see :func:`vocabulary_nll`."""
        return vocabulary_nll(self.stretch.to_local(), labels, self.stretch.device_mesh.get_group())


def vocabulary_nll(logits: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The negative log-likelihood, in nats, of each label, from logits of which each process has a stretch.

    Shapes: logits (..., vocab_size / n), this process's in the order of ranks; labels int64 (...), the same in every
    process, -100 for none -> (...), fp32 at least, 0 where there is no label; the same in every process. Three numbers
    a token are summed over the processes: the largest logit, the sum of exponentials and the label's logit; in the
    backward pass nothing is sent. Kept for it are the logits, in the dtype they have.

    Raises:
        ValueError: if labels are of another shape than logits' tokens.
        RuntimeError: for a label beyond the vocabulary; on a GPU when it is next waited for.

    Source: Shoeybi et al. 2019 (arXiv 1909.08053), section 3.
    """
    require(labels.shape == logits.shape[:-1], "labels.shape", tuple(labels.shape), f"{tuple(logits.shape[:-1])}")
    nll: Tensor = _VocabularyNll.apply(logits, labels, group)
    return nll


class _VocabularyNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
        stretch, asked = logits.shape[-1], labels != IGNORED
        known = (labels >= 0) & (labels < stretch * group.size())
        torch._assert_async((known | ~asked).all(), "labels: they must be below vocab_size, or -100 for none")
        own, place = _own_labels(labels, group.rank() * stretch, stretch)
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        largest = all_reduce(exact.amax(-1), group, largest=True)
        shifted = exact - largest[..., None]
        target = torch.where(own, shifted.gather(-1, place[..., None]).squeeze(-1), 0)
        total, target = all_reduce(torch.stack([shifted.exp_().sum(-1), target]), group)
        normaliser = total.log()
        ctx.save_for_backward(logits, largest + normaliser, own, place, asked)
        return torch.where(asked, normaliser - target, 0)

    @staticmethod
    def backward(ctx: Any, d_nll: Tensor) -> tuple[Tensor, None, None]:
        """(softmax - one-hot) times the label's gradient, of this stretch."""
        refuse_double_backward("vocabulary_nll")
        logits, normaliser, own, place, asked = ctx.saved_tensors
        d_nll = torch.where(asked, d_nll, 0)
        d_logits = (logits.to(normaliser.dtype) - normaliser[..., None]).exp_().mul_(d_nll[..., None])
        d_logits.scatter_add_(-1, place[..., None], torch.where(own, -d_nll, 0)[..., None])
        return d_logits.to(logits.dtype), None, None


def _own_labels(labels: Tensor, first: int, stretch: int) -> tuple[Tensor, Tensor]:
    """Whether each label is in this process's stretch, and its place there, 0 if not."""
    place = labels - first
    own = (place >= 0) & (place < stretch)
    return own, torch.where(own, place, 0)
