"""Soft MoE: no token is chosen; experts work on slots, each a mix of all tokens of its sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.checks import require, require_positive
from toolkit.routing.assignment import SoftAssignment
from toolkit.work import Work


class SoftRouter(nn.Module):
    """Every slot reads a softmax-weighted mean of its sequence's tokens, every token gets a mean of all slots back.

    Logits are l2norm(x) . (scale * l2norm(phi)) with one row of phi a slot; dispatch weights are their softmax over
    the tokens of a sequence, combine weights their softmax over all slots. Computed in fp32 (fp64 for fp64
    weights) whatever the autocast. Balanced by construction: no losses.

    Not causal (``causal == "never"``): every token sees its whole sequence, so this is for encoders.

    Cost: ``num_experts * slots`` rows of experts a sequence, however long it is, and three products of
    seq_len * num_experts * slots * dim. The paper's choice is num_experts * slots = seq_len, the cost of top-1.

    Args:
        dim: width of a token.
        num_experts: how many experts there are.
        slots: slots of each expert.

    Raises:
        ValueError: if a size is not positive.

    Source: Puigcerver et al. 2023 (arXiv 2308.00951), section 2, equations 1 to 3, normalised as in section 2.3.
    """

    kind = "router"
    causal = "never"
    certainty = "exact"

    def __init__(self, dim: int, num_experts: int, slots: int) -> None:
        super().__init__()
        require_positive(dim=dim, num_experts=num_experts, slots=slots)
        self.dim, self.num_experts, self.slots = dim, num_experts, slots
        self.weight = nn.Parameter(torch.empty(num_experts, slots, dim))
        self.scale = nn.Parameter(torch.empty(1))  # FSDP2 cuts no scalars
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Rows in random directions (their length does not matter), scale 1."""
        nn.init.normal_(self.weight, std=self.weight.shape[-1] ** -0.5)
        nn.init.ones_(self.scale)

    def forward(
        self,
        x: Tensor,
        *,
        token_ids: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> SoftAssignment:
        """x (..., length, dim) -> SoftAssignment; each (length, dim) of it is one sequence.

        Args:
            x: the tokens; (length, dim) is a single sequence.
            token_ids: not used.
            sequence_ids: None: slots belong to a sequence, and how many there are must be known from x's shape.
            valid: bool (..., length), False for padding: no slot reads it and it gets zeros.

        Raises:
            ValueError: if ``sequence_ids`` is given or the shape of ``valid`` is not (..., length).
        """
        right = "None: a soft router takes sequences as (sequences, length, dim), padded, with valid=False for padding"
        require(sequence_ids is None, "sequence_ids", "a tensor", right)
        fits = valid is None or valid.shape == x.shape[:-1]
        require(fits, "valid.shape", None if valid is None else tuple(valid.shape), f"{tuple(x.shape[:-1])}")
        with torch.autocast(x.device.type, enabled=False):
            logits = self.score(x)
            combine = logits.flatten(-2).softmax(dim=-1).unflatten(-1, (self.num_experts, self.slots))
            if valid is None:
                return SoftAssignment(logits.softmax(dim=-3), combine, logits)
            real = valid[..., None, None]
            # Not -inf: a sequence that is all padding would be NaN on its way to zero.
            dispatch = logits.masked_fill(~real, torch.finfo(logits.dtype).min).softmax(dim=-3)
            return SoftAssignment(torch.where(real, dispatch, 0.0), torch.where(real, combine, 0.0), logits)

    def score(self, x: Tensor) -> Tensor:
        """x (..., length, dim) -> logits (..., length, num_experts, slots), fp32 (fp64 for fp64 weights)."""
        compute = torch.promote_types(self.weight.dtype, torch.float32)
        directions = nn.functional.normalize(self.weight.to(compute), dim=-1) * self.scale.to(compute)
        return torch.einsum("...d,esd->...es", nn.functional.normalize(x.to(compute), dim=-1), directions)

    def work(self, seq_len: int) -> list[Work]:
        """Three products over one sequence: the logits, mixing tokens into slots, mixing slots into tokens."""
        return [Work.dense("router", 3 * seq_len * self.weight.numel())]

    def rows(self, seq_len: int) -> int:
        """Slots of a sequence, each a row of its expert, however long the sequence is."""
        return self.num_experts * self.slots

    def triples(self, seq_len: int) -> int:
        """One a slot."""
        return self.rows(seq_len)

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        experts, slots, dim = self.weight.shape
        return f"dim={dim}, num_experts={experts}, slots={slots}"
