"""Balance without a loss: a bias on each expert's score that moves the choice and never the weight.

A router adds ``bias`` to its scores where it chooses, and shows every training forward to :meth:`Balancer.observe`;
after each optimizer step :func:`update_balancers` moves the biases of a whole model::

    loss.backward()               # as many micro-batches as there are
    optimizer.step()
    update_balancers(model)       # toolkit.training.LanguageModel does this

The bias depends on batches before the present one only, so a causal router stays causal. In evaluation it is
applied and does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from toolkit.checks import require, require_choice, require_positive
from toolkit.routing.assignment import Assignment
from toolkit.routing.recompute import add_once, recomputing
from toolkit.routing.reduce import all_reduce


class Balancer(nn.Module):
    """A bias for each expert and what was seen since it last moved; a subclass gives ``measure`` and ``solve``.

    Args:
        num_experts: how many experts there are.
        shape: of what is measured.

    Attributes:
        bias: (num_experts,), in the checkpoint; fp32 whatever the model is cast to: steps of 0.001 are lost in bf16.
        pending: int64 ``shape``, the sum over this process's micro-batches since the last update; in no checkpoint.
            No buffer: DistributedDataParallel would overwrite every rank's with the first rank's.

    Raises:
        ValueError: if a size is not positive.
    """

    bias: Tensor
    remembers = True

    def __init__(self, num_experts: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        require_positive(num_experts=num_experts)
        self.num_experts = num_experts
        self.register_buffer("bias", torch.zeros(num_experts, dtype=torch.float32))
        self.pending = _nothing(shape, torch.get_default_device())

    @torch.no_grad()
    def observe(self, assignment: Assignment) -> None:
        """Add a forward to what is pending: in training only, and once where activations are recomputed."""
        if not self.training or recomputing():
            return
        if self.pending.is_meta:  # the bias was loaded in place of one on the meta device
            self.pending = _nothing(self.pending.shape, assignment.logits.device)
        elif self.pending.device != assignment.logits.device:  # sharding moves parameters and buffers by itself
            self.pending = self.pending.to(assignment.logits.device)
        add_once(self.pending, self.measure(assignment))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """No bias, and nothing pending."""
        self.bias.zero_()
        self.pending = _nothing(self.pending.shape, self.bias.device)

    def update(self, group: dist.ProcessGroup | None = None) -> None:
        """Move the bias by what is pending in every process and forget it; see :func:`update_balancers`."""
        update_balancers(self, group)

    def measure(self, assignment: Assignment) -> Tensor:
        """What a router chose -> what to add up, int64 of ``pending``'s shape."""
        raise NotImplementedError

    def solve(self, seen: Tensor) -> Tensor:
        """The sum over the global batch -> the next bias (num_experts,); the present one where nothing was seen."""
        raise NotImplementedError

    def share(self, experts: int) -> float:
        """Of all choices, the share that it wants the first ``experts`` to get."""
        return experts / self.num_experts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Balancer:
        """Move as a module does, but keep the bias fp32."""
        exact = self.bias
        super()._apply(fn, recurse)
        pending = fn(self.pending)  # of the meta device there is nothing to move: new memory holds anything
        self.pending = _nothing(pending.shape, pending.device) if self.pending.is_meta else pending
        if self.bias.dtype != torch.float32:
            self.bias = exact.to(self.bias.device)
        return self


def _nothing(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 zeros, no inference tensor, which training could not add to."""
    with torch.inference_mode(False):
        return torch.zeros(shape, dtype=torch.int64, device=device)


@torch.no_grad()
def update_balancers(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Move the bias of every balancer in ``model`` by what was seen since the last call, and forget it.

    Call it after each optimizer step, on every process: one all-reduce over ``group`` (the processes whose tokens
    differ; None: that of :func:`toolkit.routing.reduce.set_batch_group`) for all layers together. Where nothing was
    seen nothing moves.
    """
    balancers = [module for module in model.modules() if isinstance(module, Balancer)]
    if not balancers:
        return
    for balancer in balancers:
        if balancer.pending.is_meta:  # it has not run since it was loaded in place of one on the meta device
            balancer.pending = _nothing(balancer.pending.shape, balancer.bias.device)
    device = balancers[0].pending.device
    packed = torch.cat([balancer.pending.flatten().to(device) for balancer in balancers])
    sums = all_reduce(packed, group).split([balancer.pending.numel() for balancer in balancers])
    for balancer, seen in zip(balancers, sums, strict=True):
        balancer.bias.copy_(balancer.solve(seen.view_as(balancer.pending).to(balancer.bias.device)))
        balancer.pending.zero_()


class BiasBalancer(Balancer):
    """After each step, b_i += rate * sign(mean(c) - c_i): up for experts with less than their share, down for the rest.

    c counts what was chosen (before anything is dropped, padding left out) over the global batch.

    Args:
        num_experts: how many experts there are.
        rate: step of the bias; 0.001 in the paper, for scores between 0 and 1.
        centred: subtract from each step its mean over experts, so that the biases do not drift together (torchtitan
            does; the paper and Megatron do not). It changes no choice.
        update: ``"sign"``, or ``"proportional"``: b_i += rate * (mean(c) - c_i) / mean(c).
        target: the share of the choices that each expert should get, by default the same for all. An expert with
            0 is left alone, its bias stays 0: for N real experts of which a token should use K' of its top_k, and
            zero-computation experts that take the rest, ``[K' / (top_k * N)] * N + [0] * zero_experts`` (Meituan
            2025, LongCat-Flash, arXiv 2509.01322, equation 3).

    Raises:
        ValueError: if ``num_experts`` or ``rate`` is not positive, ``update`` unknown, or ``target`` not
            num_experts numbers from 0 with a sum within (0, 1].

    Source: Wang et al. 2024 (arXiv 2408.15664), algorithm 1.

    >>> BiasBalancer(num_experts=4).bias
    tensor([0., 0., 0., 0.])
    """

    def __init__(
        self,
        num_experts: int,
        rate: float = 1e-3,
        *,
        centred: bool = False,
        update: str = "sign",
        target: Sequence[float] | None = None,
    ) -> None:
        super().__init__(num_experts, (num_experts,))
        require_positive(rate=rate)
        require_choice("update", update, ("sign", "proportional"))
        if target is not None:
            fits = len(target) == num_experts and min(target) >= 0 and 0 < sum(target) <= 1 + 1e-9
            require(fits, "target", list(target), f"{num_experts} shares from 0 whose sum is above 0 and at most 1")
        self.rate, self.centred, self.rule = rate, centred, update
        self.target = None if target is None else tuple(target)

    def measure(self, assignment: Assignment) -> Tensor:
        """What a router chose -> how often each expert, int64 (num_experts,)."""
        return assignment.counts()

    def solve(self, seen: Tensor) -> Tensor:
        """counts int64 (num_experts,) -> the next bias (num_experts,)."""
        total, counts = seen.sum(), seen.double()
        mean = total / self.num_experts  # exact where it is whole, so that an expert at its share stays where it is
        if self.target is None:
            missing, steered = total.double() / self.num_experts - counts, torch.ones_like(seen, dtype=torch.bool)
        else:
            target = torch.tensor(self.target, dtype=torch.float64, device=seen.device)
            missing, steered = total * target - counts, target > 0
        step = torch.sign(missing) if self.rule == "sign" else missing / mean.clamp(min=1 / self.num_experts)
        step = torch.where(steered, step, 0)
        if self.centred:
            step = torch.where(steered, step - step.sum() / steered.sum(), 0)
        return self.bias + self.rate * step.float()

    def share(self, experts: int) -> float:
        """Of all choices, the share that the first ``experts`` have at the target; what it leaves goes to those with 0.

        Where it leaves something and there are none with 0, all get in proportion to their target.
        """
        if self.target is None:
            return super().share(experts)
        total, free = sum(self.target), self.target.count(0)
        if not free:
            return sum(self.target[:experts]) / total
        return sum(self.target[:experts]) + (1 - total) * self.target[:experts].count(0) / free

    def extra_repr(self) -> str:
        """Settings, for ``print(model)``."""
        return f"num_experts={self.num_experts}, rate={self.rate:g}, centred={self.centred}, update={self.rule!r}"
