"""The top-k router: each token goes to the experts it scores highest."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from toolkit.checks import require, require_choice, require_positive
from toolkit.routing.assignment import Assignment
from toolkit.routing.balancer import Balancer
from toolkit.routing.groups import GroupLimit
from toolkit.routing.noise import Noise
from toolkit.routing.router import GatedRouter, table
from toolkit.routing.scores import KEPT, SCORES, normalizes, project, scaled_gates


class TopKRouter(GatedRouter):
    """Scores of all experts, then each token's ``top_k`` highest with those scores as gates.

    Causal: a token's experts depend on that token alone (and, with a balancer, on batches of the past). In
    evaluation there is no noise and the balancer's bias stands still; all else is the same.

    | model | settings |
    |---|---|
    | Mixtral, Qwen3-MoE | the default |
    | OLMoE | ``normalize=False`` |
    | gpt-oss | ``pre_softmax=False, bias=True`` |
    | DeepSeek-V2 | ``normalize=False, groups=8, top_groups=3, group_score="max", scale=16.0`` |
    | DeepSeek-V3 | ``score="sigmoid", groups=8, top_groups=4, scale=2.5, balancer=BiasBalancer(256)`` |
    | DeepSeek-V4 | ``score="sqrt_softplus", balancer=BiasBalancer(256), scale=1.5`` |
    | Shazeer et al. 2017 | ``noise=NoisyTopK(dim, num_experts)`` |

    Args:
        dim: width of a token.
        num_experts: how many experts there are.
        top_k: experts per token.
        score: ``"softmax"`` over all experts, or ``"sigmoid"`` or ``"sqrt_softplus"`` of each by itself.
        normalize: divide the chosen gates by their sum (plus 1e-20, as DeepSeek-V3 does). None means
            ``top_k > 1``: a normalised top-1 gate is always 1 and gives the router no gradient.
        pre_softmax: False ranks the logits and takes the softmax over the chosen ones only, which is the
            normalised softmax over all; needs ``score="softmax"``.
        noise: a noise of :mod:`toolkit.routing.noise`, in training only.
        groups: limits a token to ``top_groups`` of so many groups of experts; see :class:`GroupLimit`. None: no limit.
        top_groups: see ``groups``.
        group_score: see ``groups``.
        scale: factor of the gates, after normalising.
        balancer: a module with a buffer ``bias (num_experts,)`` that is added to what is ranked and never to a
            gate, and a method ``observe(assignment)`` that training forwards call (:mod:`toolkit.routing.balancer`).
        bias: whether the logits have a learned bias; the parameter ``bias`` (num_experts,), which starts at 0.
        losses: see :class:`toolkit.routing.router.GatedRouter`.

    Raises:
        ValueError: if a size or ``scale`` is not positive, ``top_k`` exceeds ``num_experts``, ``score`` is unknown,
            ``pre_softmax=False`` stands with another score or with ``normalize=False``, the groups do not fit
            (see :class:`GroupLimit`), or the noise or balancer is for another number of experts.

    Source: Shazeer et al. 2017 (arXiv 1701.06538), section 2.1; Jiang et al. 2024, Mixtral (arXiv 2401.04088),
    section 2.1; DeepSeek-AI 2024, V3 (arXiv 2412.19437), equations 12 to 16.

    >>> router = TopKRouter(16, 8, 2, score="sigmoid", groups=4, top_groups=2, scale=2.5)
    >>> router(torch.randn(5, 16)).weights.sum(-1)
    tensor([2.5000, 2.5000, 2.5000, 2.5000, 2.5000], grad_fn=<SumBackward1>)
    """

    certainty = "exact"

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int,
        *,
        score: str = "softmax",
        normalize: bool | None = None,
        pre_softmax: bool = True,
        noise: Noise | None = None,
        groups: int | None = None,
        top_groups: int | None = None,
        group_score: str = "top2_sum",
        scale: float = 1.0,
        balancer: nn.Module | None = None,
        bias: bool = False,
        losses: Iterable[nn.Module] | None = None,
    ) -> None:
        super().__init__(dim, num_experts, losses, noise)
        require(1 <= top_k <= num_experts, "top_k", top_k, f"between 1 and num_experts={num_experts}")
        require_choice("score", score, tuple(SCORES))
        require_positive(scale=scale)
        self.top_k, self.scale = top_k, scale
        self.score_function, self.pre_softmax = score, pre_softmax
        require(pre_softmax or score == "softmax", "score", score, "'softmax' where pre_softmax=False")
        require(pre_softmax or normalize is not False, "normalize", normalize, "True or None where pre_softmax=False")
        asked = "normalize=True" if pre_softmax else "pre_softmax=False"
        self.normalize = normalizes(top_k, normalize if pre_softmax else True, asked)
        self.group_limit = _limit(groups, top_groups, group_score, num_experts, top_k)
        self.balancer = _fitting(balancer, num_experts, top_k, score if pre_softmax else "logits")
        self.bias = nn.Parameter(torch.zeros(num_experts)) if bias else None

    def reset_parameters(self) -> None:
        """As :class:`Router` says; the bias starts at 0."""
        super().reset_parameters()
        bias = getattr(self, "bias", None)  # not there yet while the base constructs
        if bias is not None:
            nn.init.zeros_(bias)

    def score(self, x: Tensor) -> Tensor:
        """x (tokens, dim) -> logits (tokens, num_experts), fp32 (fp64 for fp64 weights)."""
        return project(x, self.weight, self.bias)

    def route(
        self, logits: Tensor, *, token_ids: Tensor | None, sequence_ids: Tensor | None, valid: Tensor | None
    ) -> Assignment:
        """logits (tokens, num_experts) -> tokens * top_k triples."""
        scores = SCORES[self.score_function](logits)
        ranking = scores.raw if self.pre_softmax else logits
        experts = self.replayed(self.select(ranking.detach()))
        return table(logits, scores.probabilities, experts, self.gates(ranking.gather(1, experts)))

    def select(self, ranking: Tensor) -> Tensor:
        """ranking (tokens, num_experts) -> int64 (tokens, top_k), the highest with the balancer's bias, best first."""
        if self.balancer is not None:
            ranking = ranking + self.balancer.get_buffer("bias")
        if self.group_limit is not None:
            ranking = self.group_limit(ranking)
        return ranking.topk(self.top_k, dim=-1).indices

    def gates(self, chosen: Tensor) -> Tensor:
        """chosen (tokens, top_k), what was ranked of the chosen experts, without any bias -> their gates."""
        if not self.pre_softmax:
            return scaled_gates(torch.softmax(chosen, dim=-1), False, self.scale)
        return scaled_gates(chosen, self.normalize, self.scale)

    def observe(self, assignment: Assignment) -> None:
        """The balancer sees what was chosen."""
        if self.balancer is not None:
            self.balancer.observe(assignment)  # type: ignore[operator]  # a balancer is any module

    def kept_numbers(self) -> int:
        """As :class:`GatedRouter` says, with what the score function keeps, and logits that are ranked themselves."""
        more = KEPT[self.score_function] - 1 + (not self.pre_softmax)
        return super().kept_numbers() + more * self.num_experts

    def share(self, experts: int) -> float:
        """Of the pairs, the share that the first ``experts`` get where loads are as the balancer wants them."""
        return self.balancer.share(experts) if isinstance(self.balancer, Balancer) else super().share(experts)

    def extra_repr(self) -> str:
        """Sizes and settings, for ``print(model)``."""
        experts, dim = self.weight.shape
        text = f"dim={dim}, num_experts={experts}, top_k={self.top_k}, normalize={self.normalize}"
        further = {"score_function": "softmax", "pre_softmax": True, "group_limit": None, "scale": 1.0}
        shown = {name: getattr(self, name) for name, default in further.items() if getattr(self, name) != default}
        return text + "".join(f", {name}={value}" for name, value in shown.items())


def _limit(
    groups: int | None, top_groups: int | None, group_score: str, num_experts: int, top_k: int
) -> GroupLimit | None:
    """The limit that the three settings describe, if any."""
    both = "given together with groups" if groups is None else f"1 to groups={groups}"
    require((groups is None) == (top_groups is None), "top_groups", top_groups, both)
    if groups is None or top_groups is None:
        return None
    limit = GroupLimit(groups, top_groups, group_score)
    limit.check(num_experts, top_k)
    return limit


def _fitting(balancer: nn.Module | None, num_experts: int, top_k: int, ranked: str) -> nn.Module | None:
    """The balancer, if its bias has an entry for every expert, and what it solves for is what is ranked here."""
    shape = None if balancer is None else tuple(balancer.get_buffer("bias").shape)
    require(shape in (None, (num_experts,)), "balancer.bias.shape", shape, f"(num_experts,) = ({num_experts},)")
    for name, here in (("top_k", top_k), ("score", ranked)):
        given = getattr(balancer, name, here)
        require(given == here, f"balancer.{name}", given, f"the router's, {here!r}")
    return balancer
