"""Switch Transformer's router: one expert a token."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from toolkit.checks import require
from toolkit.routing.noise import Jitter
from toolkit.routing.topk import TopKRouter


class SwitchRouter(TopKRouter):
    """A softmax over all experts; a token goes to the highest, weighted with its probability.

    A :class:`TopKRouter` with ``top_k=1``, ``normalize=False`` and input jitter. Causal: a token's expert depends
    on that token alone. In evaluation there is no jitter. Computed in fp32 ("selective precision").

    Args:
        dim: width of a token.
        num_experts: how many experts there are.
        jitter: the input is multiplied by U[1 - jitter, 1 + jitter] in training; 0 is no jitter.
        normalize: must be False.
        balancer: see :class:`TopKRouter`.
        losses: see :class:`toolkit.routing.router.GatedRouter`.

    Raises:
        ValueError: if a size is not positive, ``jitter`` is not at least 0 and below 1, or ``normalize`` is True.

    Source: Fedus et al. 2021 (arXiv 2101.03961), equations 1 and 2, sections 2.1 and 2.4.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        jitter: float = 0.01,
        normalize: bool = False,
        balancer: nn.Module | None = None,
        losses: Iterable[nn.Module] | None = None,
    ) -> None:
        right = "False: a normalised top-1 gate is always 1 and gives the router no gradient"
        require(not normalize, "normalize", normalize, right)
        require(0 <= jitter < 1, "jitter", jitter, "0 or more and below 1")
        noise = Jitter(jitter) if jitter else None
        super().__init__(dim, num_experts, 1, normalize=False, noise=noise, balancer=balancer, losses=losses)
