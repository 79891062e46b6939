"""Expert choice: experts pick their tokens, so that every expert has as many."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.checks import require, require_choice
from toolkit.routing.assignment import Assignment
from toolkit.routing.ranking import rank_within, share
from toolkit.routing.recompute import add_once, recomputing
from toolkit.routing.reduce import all_reduce
from toolkit.routing.router import GatedRouter
from toolkit.routing.sequences import in_order


class ExpertChoiceRouter(GatedRouter):
    """Softmax over experts, then each expert takes the C tokens it scores highest.

    C = ceil(S * capacity_factor / num_experts), where S is the number of tokens of a sequence, padding left out;
    ``sequence_ids`` tells sequences apart, which must stand one after another, and without it the whole batch is
    one. A token may get 0 to num_experts experts, and its gates are the probabilities as they are. Every expert has its
    share by construction, so there is no balance loss.

    Whether a token is taken depends on later tokens of its sequence, so training leaks the future. What evaluation
    does is chosen by name:

    - ``"threshold"`` (``causal == "evaluation"``): an expert takes a token whose probability is at least the expert's
      threshold, a moving average of the C-th largest probability over the training batches and processes. It is fp32,
      in the checkpoint, starts at 1 / num_experts, and neither evaluation nor the recomputation of activation
      checkpointing moves it.
    - ``"choice"`` (``causal == "never"``): as in training, for encoders.

    Cost: num_experts * C (token, expert) pairs of a sequence in training, above capacity_factor * S where num_experts
    does not divide that; by a threshold, as many as reach it. Ranking sorts tokens * num_experts numbers. Without
    ``sequence_ids`` training gives num_experts * C triples. With it, and where a threshold decides, any token may be
    taken by any expert and shapes may not depend on data, so there are tokens * num_experts triples, most of them -1: a
    backend that allocates rows for all triples pays for them in memory.

    Args:
        dim: width of a token.
        num_experts: how many experts there are.
        capacity_factor: average experts per token; above 0 and at most ``num_experts``.
        evaluation: ``"threshold"`` or ``"choice"``.
        momentum: share of the old threshold that one training batch keeps, once there were enough batches; before, all
            batches count alike.
        losses: auxiliary losses; none by default.

    Raises:
        ValueError: if a setting is out of its range or unknown.

    Source: Zhou et al. 2022 (arXiv 2202.09368), section 3.2, equations 1 and 2. The threshold is ours; the
    paper leaves autoregressive decoding open.
    """

    certainty = "exact"
    equal_loads = True
    threshold: Tensor
    batches: Tensor

    def __init__(
        self,
        dim: int,
        num_experts: int,
        capacity_factor: float = 2.0,
        *,
        evaluation: str = "threshold",
        momentum: float = 0.99,
        losses: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__(dim, num_experts, losses=losses)
        fits = 0 < capacity_factor <= num_experts
        require(fits, "capacity_factor", capacity_factor, f"above 0 and at most num_experts={num_experts}")
        require_choice("evaluation", evaluation, ("threshold", "choice"))
        require(0 <= momentum < 1, "momentum", momentum, "at least 0 and below 1")
        self.capacity_factor = capacity_factor
        self.evaluation, self.momentum = evaluation, momentum
        self.causal = "evaluation" if evaluation == "threshold" else "never"
        self.register_buffer("threshold", torch.full((num_experts,), 1 / num_experts, dtype=torch.float32))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self) -> None:
        """As :class:`GatedRouter` says; the thresholds start at 1 / num_experts, of no batch."""
        super().reset_parameters()
        if hasattr(self, "threshold"):  # not there yet while the base constructs
            nn.init.constant_(self.threshold, 1 / self.num_experts)
            nn.init.zeros_(self.batches)

    def route(
        self, logits: Tensor, *, token_ids: Tensor | None, sequence_ids: Tensor | None, valid: Tensor | None
    ) -> Assignment:
        """logits (tokens, num_experts) -> the triples taken, those of one token in the order of experts."""
        probabilities = torch.softmax(logits, dim=-1)
        most = logits.numel()
        if self.evaluation == "threshold" and not self.training:
            taken = probabilities >= self.threshold
        else:
            taken = self._choose(probabilities.detach(), sequence_ids, valid)
            if sequence_ids is None and self.tape is None:  # a replay may hold more
                most = self.num_experts * share(len(logits), self.capacity_factor, self.num_experts)
        return _taken_triples(logits, probabilities, self.replayed(taken), most)

    def _choose(self, scores: Tensor, sequence_ids: Tensor | None, valid: Tensor | None) -> Tensor:
        """scores (tokens, num_experts) -> bool of the same shape, the best of each sequence for every expert."""
        tokens, experts = scores.shape
        sequence = torch.zeros_like(scores[:, 0], dtype=torch.int64) if sequence_ids is None else in_order(sequence_ids)
        real = torch.ones_like(sequence, dtype=torch.bool) if valid is None else valid
        scores = torch.where(real[:, None], scores, -1.0)
        rank = rank_within(sequence.expand(experts, tokens), scores.T.contiguous()).T
        lengths = torch.zeros_like(sequence).scatter_add(0, sequence, real.long())
        capacity = share(lengths, self.capacity_factor, experts).index_select(0, sequence)[:, None]
        if self.training and not recomputing():
            self._observe(scores, (rank == capacity - 1) & real[:, None])
        return (rank < capacity) & real[:, None]

    @torch.no_grad()
    def _observe(self, scores: Tensor, last: Tensor) -> None:
        """Move the thresholds towards the mean, over sequences and processes, of the ``last`` scores taken."""
        last = last & scores.isfinite()  # a batch of NaNs, of which whoever trains is told, must not stay here
        found = torch.stack([torch.where(last, scores, 0.0).sum(0), last.sum(0).to(scores.dtype)]).float()
        total, sequences = all_reduce(found).unbind()
        some = (sequences > 0).any().to(self.batches.dtype)
        step = torch.clamp(1.0 / (self.batches + some).clamp(min=1), min=1 - self.momentum)
        mean = total / sequences.clamp(min=1)
        add_once(self.threshold, torch.where(sequences > 0, step * (mean - self.threshold), 0.0))
        add_once(self.batches, some)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExpertChoiceRouter:
        """Moves between devices; a model's change of dtype leaves the threshold in fp32, seen by ``fn`` as integers."""
        threshold: Any = self._buffers.pop("threshold")
        super()._apply(fn, recurse)
        self._buffers["threshold"] = fn(threshold.view(torch.int32)).view(torch.float32)
        return self

    def rows(self, seq_len: int) -> int:
        """num_experts * C, in training and in evaluation by choice."""
        return self.num_experts * share(seq_len, self.capacity_factor, self.num_experts)

    def triples(self, seq_len: int) -> int:
        """One for each token and expert, which any sequence of a batch may need."""
        return self.num_experts * seq_len

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        experts, dim = self.weight.shape
        return (
            f"dim={dim}, num_experts={experts}, capacity_factor={self.capacity_factor}, evaluation={self.evaluation!r}"
        )


def _taken_triples(logits: Tensor, probabilities: Tensor, taken: Tensor, most: int) -> Assignment:
    """The pairs ``taken`` as ``most`` triples in token order, gated by their probability; the rest of them are -1.

    Shapes: logits, probabilities, taken bool (tokens, num_experts). ``most`` is at least the number taken.
    """
    experts = taken.shape[1]
    pair = torch.arange(taken.numel(), device=taken.device)
    if most < taken.numel():  # compact: the n-th pair taken goes to place n, what is not taken beyond the end
        flat = taken.flatten()
        place = torch.where(flat, flat.cumsum(0) - 1, most)
        # A place nobody fills names the last pair, so that tokens ascend.
        filled = torch.full((most + 1,), max(taken.numel() - 1, 0), device=taken.device)
        pair = filled.scatter(0, place, pair)[:most]
        used = torch.arange(most, device=taken.device) < flat.sum()
    else:
        used = taken.flatten()
    weight = torch.where(used, probabilities.flatten().index_select(0, pair), 0.0)
    return Assignment(pair // experts, torch.where(used, pair % experts, -1), weight, logits, probabilities)
