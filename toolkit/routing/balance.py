"""The load balancing losses of Switch Transformer and its heirs, and the loss that keeps logits small.

One normalisation: 1 at perfect balance, whatever top_k is, for each layer by itself. Others' values follow from
:func:`toolkit.routing.conventions.balance_value`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.checks import require, require_choice, require_positive
from toolkit.routing.assignment import Assignment, count
from toolkit.routing.auxiliary_loss import AuxiliaryLoss
from toolkit.routing.recompute import add_once, recomputing
from toolkit.routing.reduce import all_reduce, distributed
from toolkit.routing.sequences import in_order
from toolkit.routing.valid import mean_over_valid, only_valid

NAMES = {"global": "balance", "batch": "batch_balance", "sequence": "sequence_balance"}
"""What a loss over each group of tokens is called, so that a router can have one of each."""


class LoadBalancingLoss(AuxiliaryLoss):
    """coefficient * E * sum_i f_i P_i: 1 * coefficient at perfect balance, whatever top_k is.

    f_i is the share of (token, expert) choices that expert i got (sum 1, no gradient, before anything is dropped),
    P_i its mean probability.

    Args:
        coefficient: weight of the loss; 0.01 in Switch Transformer and OLMoE; DeepSeek-V3 has 0.0001 over
            sequences beside its bias.
        over: the tokens that f is of.
            ``"global"``: the global batch (Qiu et al. 2025, arXiv 2501.11873): counts are summed over the processes
            that share it (:func:`toolkit.routing.reduce.set_batch_group`; by default all) and over the
            ``micro_batches`` of an optimizer step, each seeing those before it and itself. P stays local: averaging
            the ranks' and micro-batches' gradients averages it, each of them with the same weight however much of it
            is padding.
            ``"batch"``: this process's tokens of this forward.
            ``"sequence"``: each of ``assignment.sequence_ids`` by itself, then the mean over the sequences that
            have a token (DeepSeek-V2, arXiv 2405.04434, equations 23 to 25; V3, arXiv 2412.19437, 17 to 20). Works
            in a table (tokens, num_experts), as large as the logits.
        counted: ``"chosen"``: f is of what the router chose. ``"scores"``: of each token's top_k probabilities, as
            though no bias, noise or group limit moved the choice: DeepSeek-V3's equation 18.
        micro_batches: training forwards that make an optimizer step, for ``"global"``; counts start anew after as
            many, or at :meth:`reset`. ``LanguageModel`` sets it to the trainer's ``accumulate_grad_batches``.
            In eval mode the formula is that of one micro-batch. With several micro-batches or processes, a forward
            that activation checkpointing repeats uses the counts of the latest forward: run each one's backward
            before the next forward.

    Raises:
        ValueError: if ``coefficient`` is negative, ``micro_batches`` below 1, or ``over`` or ``counted`` unknown; when
            called, if ``"scores"`` is asked of a router whose tokens differ in how many experts they have.

    Source: Fedus et al. 2021, Switch Transformer (arXiv 2101.03961), equations 4 to 6, with f over all top_k choices.
    """

    def __init__(
        self, coefficient: float = 0.01, over: str = "global", *, counted: str = "chosen", micro_batches: int = 1
    ) -> None:
        super().__init__(coefficient)
        require_choice("over", over, tuple(NAMES))
        require_choice("counted", counted, ("chosen", "scores"))
        require_positive(micro_batches=micro_batches)
        self.remembers = over == "global"
        self.over, self.counted, self.micro_batches, self.name = over, counted, micro_batches, NAMES[over]
        # Forwards since the last reset, then their counts; no buffer: DistributedDataParallel would overwrite every
        # rank's with the first rank's.
        self._tally: Tensor | None = None

    def value(self, assignment: Assignment) -> Tensor:
        """What a router chose -> E * sum_i f_i P_i, a scalar."""
        probabilities = assignment.probabilities
        choice = assignment.choice if self.counted == "chosen" else likeliest(assignment)
        if self.over == "sequence":
            return _over_sequences(assignment, choice)
        counts = count(choice, assignment.num_experts)
        if self.over == "global":
            counts = self._global(counts)
        share = counts.to(probabilities.dtype) / counts.sum().clamp(min=1)  # a process may have no token at all
        importance = mean_over_valid(probabilities, assignment.valid)
        return assignment.num_experts * torch.dot(share, importance)

    def reset(self) -> None:
        """Forget the micro-batches since the last optimizer step; for a step that came before ``micro_batches``."""
        if self._tally is not None:
            self._tally.zero_()

    def _global(self, counts: Tensor) -> Tensor:
        """counts int64 (num_experts,) of one forward -> of all processes and the step's forwards so far."""
        if not self.training:
            return all_reduce(counts)
        if self.micro_batches == 1 and not distributed():
            return counts  # nothing to remember, so that any forward may be recomputed at any time
        if self._tally is None or self._tally.device != counts.device:
            self._tally = _zero_tally(counts)
        if not recomputing():
            done = self._tally[0] % self.micro_batches == 0  # the step before is: its counts are taken off again
            fresh = all_reduce(counts) - torch.where(done, self._tally[1:], 0)
            add_once(self._tally, torch.cat([torch.ones_like(counts[:1]), fresh]))
        return self._tally[1:]

    def extra_repr(self) -> str:
        """The coefficient and the group, for ``print(model)``."""
        return f"{super().extra_repr()}, over={self.over!r}"


class GShardLoss(AuxiliaryLoss):
    """coefficient * E * sum_i (c_i / T) P_i, where c_i counts first choices only, whatever top_k is; 1 at balance.

    A token's first choice is its likeliest expert. The paper's mean over experts of (c_i / S) m_i is this over E^2.

    Args:
        coefficient: weight of the loss; 0.01.

    Source: Lepikhin et al. 2020, GShard (arXiv 2006.16668), algorithm 1, lines 8 and 13.
    """

    name = "gshard"

    def __init__(self, coefficient: float = 0.01) -> None:
        super().__init__(coefficient)

    def value(self, assignment: Assignment) -> Tensor:
        """What a router chose -> E * sum_i (c_i / T) P_i, a scalar."""
        first = count(_top(assignment, 1), assignment.num_experts)
        importance = mean_over_valid(assignment.probabilities, assignment.valid)
        return assignment.num_experts * torch.dot(first.to(importance.dtype) / first.sum().clamp(min=1), importance)


class RouterZLoss(AuxiliaryLoss):
    """coefficient * mean_t logsumexp(logits_t)^2, which keeps router logits small.

    The logits are the clean ones: before bias and noise.

    Args:
        coefficient: weight of the loss; 0.001 in ST-MoE and OLMoE.

    Source: Zoph et al. 2022, ST-MoE (arXiv 2202.08906), equation 5.
    """

    name = "z"

    def __init__(self, coefficient: float = 0.001) -> None:
        super().__init__(coefficient)

    def value(self, assignment: Assignment) -> Tensor:
        """What a router chose -> mean_t logsumexp(logits_t)^2, a scalar."""
        logits = only_valid(assignment.logits, assignment.valid)  # so that no gradient of padding is NaN
        return mean_over_valid(torch.logsumexp(logits, dim=-1).square(), assignment.valid)


def _zero_tally(counts: Tensor) -> Tensor:
    """int64 (num_experts + 1,), zero; no inference tensor, which could not be added to once training goes on."""
    if torch.compiler.is_compiling():
        return counts.new_zeros(len(counts) + 1)
    with torch.inference_mode(False):
        return counts.new_zeros(len(counts) + 1)


def likeliest(assignment: Assignment) -> Tensor:
    """int64 (n,): each token's top_k likeliest experts, -1 for padding, where the router chose top_k for each.

    Raises:
        ValueError: if n is no multiple of the tokens.
    """
    n, tokens = len(assignment.choice), assignment.tokens
    whole = tokens > 0 and n % tokens == 0 and n // tokens <= assignment.num_experts
    require(whole or n == 0, "counted", "scores", f'"chosen" for {n} choices of {tokens} tokens: there is no top_k')
    return _top(assignment, n // max(tokens, 1))


def _top(assignment: Assignment, top_k: int) -> Tensor:
    experts = assignment.probabilities.detach().topk(top_k, dim=-1).indices
    if assignment.valid is not None:
        experts = torch.where(assignment.valid[:, None], experts, -1)
    return experts.flatten()


def _over_sequences(assignment: Assignment, choice: Tensor) -> Tensor:
    """E * sum_i f_i P_i of each sequence, then their mean, a scalar.

    Sequences are not counted on the host: each has a row of a table with as many rows as there are tokens.
    """
    p, valid = only_valid(assignment.probabilities, assignment.valid), assignment.valid
    tokens, num_experts = p.shape
    if tokens == 0:
        return p.sum()
    ids = assignment.token.new_zeros(tokens) if assignment.sequence_ids is None else assignment.sequence_ids
    row = in_order(ids)
    cell = torch.where(choice < 0, p.numel(), row.index_select(0, assignment.token) * num_experts + choice)
    counts = p.new_zeros(p.numel() + 1).scatter_add(0, cell, torch.ones_like(cell, dtype=p.dtype))
    counts = counts[:-1].view(tokens, num_experts)
    length = p.new_zeros(tokens).scatter_add(0, row, p.new_ones(tokens) if valid is None else valid.to(p.dtype))
    share = counts / (counts.sum(dim=1) * length).clamp(min=1)[:, None]  # f over the tokens that P is the mean of
    sequences = (length > 0).sum().clamp(min=1)
    return num_experts * (share.index_select(0, row) * p).sum() / sequences
