"""What every router is: a module that scores tokens in fp32 and returns an assignment with its losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from toolkit.checks import require, require_positive
from toolkit.routing.assignment import Assignment
from toolkit.routing.balance import LoadBalancingLoss, RouterZLoss
from toolkit.routing.noise import Noise, Noisy
from toolkit.routing.scores import project
from toolkit.work import Work


class Router(nn.Module):
    """Base of the routers that choose experts; a subclass gives logits (:meth:`score`) and chooses (:meth:`route`).

    Losses are called on every training forward with the assignment, before anything is dropped.

    Args:
        num_experts: how many experts there are.
        losses: auxiliary losses, each a module with a ``name`` that maps an ``Assignment`` to a scalar.
        noise: what the choice is perturbed by in training (:mod:`toolkit.routing.noise`); None: nothing. In evaluation
            there is none.

    Attributes:
        causal: when a token's experts depend on no later token: ``"always"``, ``"evaluation"`` (training leaks, the
            rule used in evaluation does not), or ``"never"``.
        certainty: what :meth:`rows` is of a training forward's, see :class:`toolkit.work.Work`.
        equal_loads: whether every expert gets as many tokens of a sequence in training, whatever the tokens.

    Raises:
        ValueError: if ``num_experts`` is not positive, or two losses have the same name.
    """

    kind = "router"
    causal: str = "always"
    certainty: str = "balanced"
    equal_loads: bool = False
    top_k: int
    tape: Callable[[Tensor], Tensor] | None = None  # set by RoutingReplay for a while

    def __init__(self, num_experts: int, losses: Iterable[nn.Module] = (), noise: Noise | None = None) -> None:
        super().__init__()
        require_positive(num_experts=num_experts)
        self.num_experts = num_experts
        self.losses = nn.ModuleList(losses)
        names = [str(loss.name) for loss in self.losses]
        require(len(set(names)) == len(names), "losses", names, "of different names: they are added up by name")
        self.noise = noise

    def forward(
        self,
        x: Tensor,
        *,
        token_ids: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Assignment:
        """x (tokens, dim) -> Assignment.

        Args:
            x: the tokens.
            token_ids: int64 (tokens,), their ids in the vocabulary, for routers that hash them.
            sequence_ids: int64 (tokens,), the sequence each is of: 0, 1, ... in order; None: all are one sequence.
            valid: bool (tokens,), False for padding: it goes to no expert and is in no statistic or loss.

        Raises:
            ValueError: if a keyword's shape is not (tokens,).
        """
        for name, value in (("token_ids", token_ids), ("sequence_ids", sequence_ids), ("valid", valid)):
            shape = None if value is None else tuple(value.shape)
            require(shape in (None, x.shape[:1]), f"{name}.shape", shape, f"(tokens,) = {tuple(x.shape[:1])}")
        with torch.autocast(x.device.type, enabled=False):
            logits = self.score(x)
            noisy = self.perturb(x, logits)
            seen = logits if noisy.logits is None else noisy.logits
            assignment = self.route(seen, token_ids=token_ids, sequence_ids=sequence_ids, valid=valid)
            assignment = replace(assignment, logits=logits, noisy_logits=noisy.logits, noise_std=noisy.std)
            assignment = without_padding(replace(assignment, valid=valid, sequence_ids=sequence_ids))
            if not self.training:
                return assignment
            self.observe(assignment)
            return replace(assignment, losses={str(loss.name): loss(assignment) for loss in self.losses})

    def score(self, x: Tensor) -> Tensor:
        """x (tokens, dim) -> logits (tokens, num_experts), fp32 (fp64 for fp64 weights)."""
        raise NotImplementedError

    def perturb(self, x: Tensor, logits: Tensor) -> Noisy:
        """x (tokens, dim), logits (tokens, num_experts) -> Noisy; nothing in it in evaluation and without noise."""
        if self.noise is None or not self.training:
            return Noisy(None, None)
        noisy: Noisy = self.noise(x, logits, self.score)
        return noisy

    def observe(self, assignment: Assignment) -> None:
        """Called in every training forward with what was chosen, padding taken out; nothing by default."""

    def replayed(self, choice: Tensor) -> Tensor:
        """What the router is about to choose -> the same, or what a ``RoutingReplay`` holds in its place.

        A subclass passes each of its choices through here before it gathers gates, so that they are fresh.
        """
        return choice if self.tape is None else self.tape(choice)

    def route(
        self, logits: Tensor, *, token_ids: Tensor | None, sequence_ids: Tensor | None, valid: Tensor | None
    ) -> Assignment:
        """logits (tokens, num_experts), noisy where there is noise -> what is chosen, without losses.

        Padding is the caller's to take out.
        """
        raise NotImplementedError

    def work(self, seq_len: int) -> list[Work]:
        """Every product over one sequence, by whom it is counted; a router that multiplies nothing has none."""
        return []

    def rows(self, seq_len: int) -> int:
        """(token, expert) pairs that training makes of a sequence, those with experts of no computation included."""
        return seq_len * self.top_k

    def triples(self, seq_len: int) -> int:
        """Triples that a sequence has in training's assignment, those of no expert included: what takes memory."""
        return self.rows(seq_len)

    def kept_numbers(self) -> int:
        """fp32 numbers a token that autograd keeps of its scores; not of its triples, nor what its losses add up."""
        return 0

    def share(self, experts: int) -> float:
        """Of the pairs, the share that the first ``experts`` get where loads are as they should be."""
        return experts / self.num_experts


class GatedRouter(Router):
    """A router whose logits are one linear map of the token, with ``weight`` (num_experts, dim).

    Computed in fp32 (fp64 for fp64 weights) whatever the autocast: Switch Transformer's "selective precision".

    Args:
        dim: width of a token.
        num_experts: how many experts there are.
        losses: see :class:`Router`; by default load balancing at 0.01 and the z-loss at 0.001.
        noise: see :class:`Router`.

    Raises:
        ValueError: as :class:`Router`; if ``dim`` is not positive, or the noise is for another size.
    """

    def __init__(
        self, dim: int, num_experts: int, losses: Iterable[nn.Module] | None = None, noise: Noise | None = None
    ) -> None:
        super().__init__(num_experts, [LoadBalancingLoss(), RouterZLoss()] if losses is None else losses, noise)
        require_positive(dim=dim)
        self.dim = dim
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        if noise is not None:
            noise.check(self.weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with standard deviation dim ** -0.5: logits of unit variance for normalised tokens.

        Zero where the noise asks for that.
        """
        if self.noise is not None and self.noise.zero_router:
            nn.init.zeros_(self.weight)
        else:
            nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)

    def score(self, x: Tensor) -> Tensor:
        """x (tokens, dim) -> logits (tokens, num_experts), fp32 (fp64 for fp64 weights)."""
        return project(x, self.weight)

    def work(self, seq_len: int) -> list[Work]:
        """One product, every token with every expert's row, and in training those of the noise.

        Where the noise is none on the clean logits but makes others, the z-loss alone gives the clean a gradient.
        """
        size = seq_len * self.weight.numel()
        clean = Work.dense(self.kind, size)
        if self.noise is None or not self.noise.products:
            return [clean]
        if self.noise.replaces and not self._has_z_loss:
            clean = replace(clean, backward=0.0, computed_backward=0.0)
        return [clean, replace(Work.dense(self.kind, self.noise.products * size), phase="training")]

    def kept_numbers(self) -> int:
        """Probabilities, the z-loss's logits, and what the noise keeps."""
        noise = 0 if self.noise is None else self.noise.kept_numbers(*self.weight.shape)
        return self.num_experts * (1 + self._has_z_loss) + noise

    @property
    def _has_z_loss(self) -> bool:
        return any(isinstance(loss, RouterZLoss) for loss in self.losses)


def table(logits: Tensor, probabilities: Tensor, experts: Tensor, gates: Tensor, **more: Tensor | None) -> Assignment:
    """The assignment in which token t has ``experts[t]`` with ``gates[t]``.

    Shapes: logits, probabilities (tokens, num_experts); experts int64, gates (tokens, top_k). ``more`` are further
    fields of :class:`Assignment`.
    """
    token = torch.arange(len(experts), device=experts.device).repeat_interleave(experts.shape[1])
    return Assignment(token, experts.flatten(), gates.flatten(), logits, probabilities, **more)  # type: ignore[arg-type]


def without_padding(assignment: Assignment) -> Assignment:
    """The same with no expert, no choice and no weight for the tokens that are not ``valid``."""
    if assignment.valid is None:
        return assignment
    real = assignment.valid.index_select(0, assignment.token)
    return replace(
        assignment,
        expert=torch.where(real, assignment.expert, -1),
        chosen=torch.where(real, assignment.choice, -1),
        weight=torch.where(real, assignment.weight, 0),
    )
