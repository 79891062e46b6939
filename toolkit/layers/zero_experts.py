"""Experts that multiply nothing: they let a token spend less than ``top_k`` experts' compute."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.checks import require
from toolkit.routing import Assignment
from toolkit.work import Work


class ZeroComputationExperts(nn.Module):
    """``identity`` experts that give the token back, ``zero`` ones that give nothing, ``constant`` ones that blend.

    A router of ``num_experts`` + ``count`` experts chooses among all; those from ``num_experts`` on are, in this
    order, the identity, the zero and the constant experts. Constant expert j gives a x + b v_j, (a, b) =
    softmax(W_j x), v_j learned.

    Parameters: constant (constant, dim), which starts at 0; mix (constant, 2, dim).

    Args:
        dim: width of a token.
        identity, zero, constant: how many of each.

    Raises:
        ValueError: if a number is negative, or there is none at all.

    Source: identity: LongCat-Flash (arXiv 2509.01322), section 2.1; all three: Jin et al. 2024, MoE++ (arXiv
    2410.07348), equations 4 to 6, without its residual between the gates of layers.
    """

    kind = "shared_experts"  # every token's projection W_j x is computed

    def __init__(self, dim: int, identity: int = 0, zero: int = 0, constant: int = 0) -> None:
        super().__init__()
        for name, value in (("identity", identity), ("zero", zero), ("constant", constant)):
            require(value >= 0, name, value, "0 or more")
        require(identity + zero + constant > 0, "identity + zero + constant", 0, "at least 1")
        self.dim, self.identity, self.zero, self.n_constant = dim, identity, zero, constant
        self.constant = nn.Parameter(torch.empty(constant, dim)) if constant else None
        self.mix = nn.Parameter(torch.empty(constant, 2, dim)) if constant else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Constants start at 0, their mixing weights normal with standard deviation dim ** -0.5."""
        if self.constant is not None and self.mix is not None:
            nn.init.zeros_(self.constant)
            nn.init.normal_(self.mix, std=self.mix.shape[2] ** -0.5)

    @property
    def count(self) -> int:
        """How many there are."""
        return self.identity + self.zero + self.n_constant

    def forward(self, x: Tensor, assignment: Assignment, first: int) -> Tensor:
        """x (tokens, dim) -> (tokens, dim): the share of the output that these experts give; ``first`` is their first.

        Gates of all of a token's identity experts add up to one factor, those of each constant expert likewise.
        """
        number = assignment.expert - first
        gates = x.new_zeros(len(x), self.count + 1, dtype=assignment.weight.dtype)
        column = torch.where(number < 0, self.count, number)  # the last column takes what is not ours
        gates = gates.index_put((assignment.token, column), assignment.weight, accumulate=True).to(x.dtype)
        y = gates[:, : self.identity].sum(1, keepdim=True) * x
        if self.constant is None or self.mix is None:
            return y
        mine = gates[:, self.identity + self.zero : -1]  # (tokens, constant)
        a, b = F.linear(x, self.mix.flatten(0, 1)).unflatten(1, (-1, 2)).softmax(-1).unbind(-1)
        return y + (mine * a).sum(1, keepdim=True) * x + (mine * b) @ self.constant

    def work(self, seq_len: int) -> list[Work]:
        """The products of constant experts: their mixing weights and their blend."""
        return [] if self.constant is None else [Work.dense(self.kind, seq_len * 3 * self.constant.numel())]

    def extra_repr(self) -> str:
        """Numbers, for ``print(model)``."""
        return f"identity={self.identity}, zero={self.zero}, constant={self.n_constant}"
