"""Which tokens of a sequence a layer computes: the best by their own score, or those a causal predictor names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.checks import require, require_positive
from toolkit.routing.ranking import Number, rank_within
from toolkit.routing.scores import project
from toolkit.routing.valid import mean_over_valid
from toolkit.work import Work


@dataclass(frozen=True, eq=False)
class DepthChoice:
    """The tokens that a layer computes.

    Attributes:
        index: int64 (batch, n), their positions, ascending in each row.
        valid: bool (batch, n), False for positions that only pad a row that has fewer, the last of their row; None
            where every row has n.
        weight: (batch, length), r, what every token's update would be multiplied by, fp32 (fp64 for fp64 weights).
        prediction: (batch, length), the predictor's logits; above 0 it says "computed".
        losses: the predictor's, in training.
        real: bool (batch, length), False for padding, which is never chosen; None: there is none.
        sequence_ids: int64 (batch, length), the sequences that are chosen from one by one; None: the rows.
    """

    index: Tensor
    valid: Tensor | None
    weight: Tensor
    prediction: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    real: Tensor | None = None
    sequence_ids: Tensor | None = None

    @property
    def selected(self) -> Tensor:
        """bool (batch, length): whether a token is computed."""
        real = torch.ones_like(self.index, dtype=torch.bool) if self.valid is None else self.valid
        return torch.zeros_like(self.weight, dtype=torch.bool).scatter(1, self.index, real)


class DepthRouter(nn.Module):
    """Scores tokens by r = w x and chooses each sequence's best in training, those a predictor names in evaluation.

    Training: the C = ceil(capacity * length) tokens of the highest r of each sequence. That reads the future, and so
    cannot be done token by token; padding is not counted, and packed documents are chosen from one by one, each with a
    C of its own. Evaluation: the tokens for which the predictor, a small network of the token alone, says that training
    would choose them with probability above 1/2; any number of them. The predictor is trained on that question by
    binary cross-entropy over all tokens but padding; its input is detached, so that its loss ``"depth"`` moves nothing
    but itself.

    Parameters: weight (1, dim), the w of r; predictor_up (predictor_dim, dim), predictor_down (1, predictor_dim) and
    their biases. All of it is computed in fp32 (fp64 for fp64 weights) whatever the autocast.

    Args:
        dim: width of a token.
        capacity: share of a sequence's tokens that are chosen in training.
        predictor_dim: width inside the predictor; dim / 8, at least 8, by default.
        coefficient: weight of the predictor's loss.

    Raises:
        ValueError: if a size is not positive, ``capacity`` not above 0 and at most 1, or ``coefficient`` negative.

    Source: Raposo et al. 2024, Mixture-of-Depths (arXiv 2404.02258): sections 3.3 and 3.4 for the choice, 3.5, the
    second method, for the predictor.
    """

    kind = "router"

    def __init__(
        self, dim: int, capacity: float = 0.125, predictor_dim: int | None = None, coefficient: float = 0.01
    ) -> None:
        super().__init__()
        width = max(8, dim // 8) if predictor_dim is None else predictor_dim
        require_positive(dim=dim, predictor_dim=width)
        require(0 < capacity <= 1, "capacity", capacity, "above 0 and at most 1")
        require(coefficient >= 0, "coefficient", coefficient, "0 or more")
        self.capacity, self.coefficient = capacity, coefficient
        self._ratio = Fraction(str(capacity)).as_integer_ratio()  # the decimal as it was written: 0.1 * 30 is 3
        self.weight = nn.Parameter(torch.empty(1, dim))
        self.predictor_up = nn.Parameter(torch.empty(width, dim))
        self.predictor_up_bias = nn.Parameter(torch.empty(width))
        self.predictor_down = nn.Parameter(torch.empty(1, width))
        self.predictor_down_bias = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices normal with standard deviation fan_in ** -0.5; the prediction starts around ``capacity``."""
        for matrix in (self.weight, self.predictor_up, self.predictor_down):
            nn.init.normal_(matrix, std=matrix.shape[1] ** -0.5)
        nn.init.zeros_(self.predictor_up_bias)
        share = min(self.capacity, 0.99)
        nn.init.constant_(self.predictor_down_bias, math.log(share / (1 - share)))

    def count(self, seq_len: Number) -> Number:
        """C = ceil(capacity * seq_len): tokens chosen of a sequence in training."""
        numerator, denominator = self._ratio
        return -(-seq_len * numerator // denominator)

    def forward(self, x: Tensor, *, sequence_ids: Tensor | None = None, valid: Tensor | None = None) -> DepthChoice:
        """x (batch, length, dim) -> DepthChoice; of one shape for one length in training, waiting for no device.

        In evaluation, and with padding or packed documents, rows are padded to the row that has most, which waits for
        the device. ``sequence_ids`` and ``valid`` (batch, length) are those of
        :class:`toolkit.layers.packed_sequences.Sequences`.
        """
        with torch.autocast(x.device.type, enabled=False):
            weight, prediction = project(x, self.weight).squeeze(-1), self.predict(x.detach())
            if not self.training:
                index, some = _listed(prediction > 0 if valid is None else (prediction > 0) & valid)
            elif sequence_ids is None and valid is None:
                index, some = self._highest(weight), None
            else:
                index, some = _at_least_one(*_listed(self.best(weight, sequence_ids, valid)), weight)
            choice = DepthChoice(index, some, weight, prediction, real=valid, sequence_ids=sequence_ids)
            if not self.training:
                return choice
            target = choice.selected.to(prediction.dtype)
            wrong = F.binary_cross_entropy_with_logits(prediction, target, reduction="none")
            loss = mean_over_valid(wrong.flatten(), None if valid is None else valid.flatten())
        return replace(choice, losses={"depth": self.coefficient * loss})

    def best(self, weight: Tensor, sequence_ids: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """r (batch, length) -> bool (batch, length), training's rule: the C highest of each sequence.

        ``sequence_ids``, numbered over the batch, and ``valid`` as in :meth:`forward`.
        """
        if sequence_ids is None and valid is None:
            return torch.zeros_like(weight, dtype=torch.bool).scatter(1, self._highest(weight), True)
        if sequence_ids is None:
            sequence_ids = torch.arange(len(weight), device=weight.device)[:, None].expand_as(weight)
        real = torch.ones_like(weight, dtype=torch.bool) if valid is None else valid
        rank = rank_within(torch.where(real, sequence_ids, -1), weight.detach())
        lengths = sequence_ids.new_zeros(weight.numel()).scatter_add(0, sequence_ids.flatten(), real.flatten().long())
        return (rank < self.count(lengths)[sequence_ids]) & real

    def _highest(self, weight: Tensor) -> Tensor:
        """r (batch, length) -> int64 (batch, C), the positions of each row's highest, ascending."""
        # Stable: equal tokens tie, and the earlier one goes, in packed documents as in rows.
        best_first = weight.detach().argsort(dim=1, descending=True, stable=True)
        return best_first[:, : self.count(weight.shape[1])].sort(dim=1).values

    def predict(self, x: Tensor) -> Tensor:
        """x (batch, length, dim) -> the logits (batch, length) of being chosen."""
        hidden = F.silu(project(x, self.predictor_up, self.predictor_up_bias))
        return project(hidden, self.predictor_down, self.predictor_down_bias).squeeze(-1)

    def work(self, seq_len: int) -> list[Work]:
        """Every token's r and prediction; the predictor's first product has no gradient of its input to compute."""
        up = seq_len * self.predictor_up.numel()
        rest = seq_len * (self.weight.numel() + self.predictor_down.numel())
        return [Work.dense("router", rest), Work("router", up, up, up, computed_backward=1.0, backward=1.0)]

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        width, dim = self.predictor_up.shape
        return f"dim={dim}, capacity={self.capacity}, predictor_dim={width}, coefficient={self.coefficient:g}"


def _at_least_one(index: Tensor, some: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """The same, or where all tokens (batch, length) are padding the first of each row, as padding.

    So that the layer runs, and takes part in what other processes wait for, whatever its own rows hold.
    """
    if index.shape[1] or not weight.numel():
        return index, some
    return index.new_zeros(len(index), 1), torch.zeros_like(index.new_zeros(len(index), 1), dtype=torch.bool)


def _listed(selected: Tensor) -> tuple[Tensor, Tensor | None]:
    """Where ``selected`` (batch, length) is True, row by row, and which of that is no padding: see DepthChoice."""
    if len(selected) == 0:
        return selected.long()[:, :0], None
    counts = selected.sum(dim=1)
    most, least = torch.stack([counts.max(), counts.min()]).tolist()
    index = torch.argsort(~selected, dim=1, stable=True)[:, :most]
    if most == least:
        return index, None
    return index, torch.arange(most, device=index.device) < counts[:, None]
