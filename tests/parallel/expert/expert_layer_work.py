"""What the processes of the tests of a MoE with shared experts do: some tokens each, against all in one process."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import parallelize_module
from torch.utils.checkpoint import checkpoint

from toolkit.layers import Block, MixtureOfDepths, MoE, SelfAttention, Sequences, auxiliary_losses
from toolkit.layers.zero_experts import ZeroComputationExperts
from toolkit.parallel import SentBytes, full_gradients, full_state_dict
from toolkit.parallel.expert import exchanged_bytes, expert_parallel, expert_parameters
from toolkit.parallel.expert.exchange import Journey
from toolkit.parallel.tensor.plan import Layer
from toolkit.routing import (
    BiasBalancer,
    Capacity,
    ExpertChoiceRouter,
    GaussianNoise,
    GShardRouter,
    HashRouter,
    LoadBalancingLoss,
    NoisyTopK,
    QuantileBalancer,
    RandomRouter,
    RouterZLoss,
    SinkhornRouter,
    SoftRouter,
    SwitchRouter,
    TopKRouter,
    update_balancers,
)
from toolkit.routing.reduce import set_batch_group

DIM, HIDDEN, EXPERTS, LENGTH = 8, 12, 8, 6
layer = partial(MoE, DIM, HIDDEN, EXPERTS)


@dataclass(frozen=True)
class Case:
    """A MoE, and how many sequences each rank has."""

    build: Callable[[], MoE]
    sequences: tuple[int, ...] = (2, 2, 2, 2)
    padded: bool = False
    checkpointed: bool = False


def plain(top_k: int = 2, **settings: Any) -> TopKRouter:
    """Without losses, whose mean over processes is the batch's only where they have as many tokens."""
    return TopKRouter(DIM, EXPERTS, top_k, losses=[], **settings)


def to_one_expert(expert: int) -> MoE:
    moe = layer(1, router=plain(1, bias=True, score="sigmoid"))
    with torch.no_grad():
        moe.router.bias[expert] = 50.0
    return moe


def with_zero_experts() -> MoE:
    free = ZeroComputationExperts(DIM, identity=1, zero=1, constant=2)
    router = TopKRouter(DIM, EXPERTS + free.count, 3, score="sigmoid", balancer=BiasBalancer(EXPERTS + free.count))
    return layer(3, router=router, zero_experts=free, shared_experts=1)


CASES = {
    "default": Case(lambda: layer(2)),
    "losses": Case(
        lambda: layer(3, router=TopKRouter(DIM, EXPERTS, 3, losses=[LoadBalancingLoss(0.3), RouterZLoss(0.2)]))
    ),
    "shared": Case(lambda: layer(2, shared_experts=2, shared_gate=True, bias=True)),
    "bias balancer": Case(lambda: layer(2, router=plain(score="sigmoid", balancer=BiasBalancer(EXPERTS, 0.05)))),
    "quantile": Case(lambda: layer(2, router=plain(balancer=QuantileBalancer(EXPERTS, 2)))),
    "zero experts": Case(with_zero_experts),
    "switch": Case(lambda: layer(1, router=SwitchRouter(DIM, EXPERTS, jitter=0.0, losses=[]))),
    "reference": Case(lambda: layer(2, backend="reference", activation="gelu", bias=True)),
    "recomputed": Case(lambda: layer(2, recompute=True)),
    "checkpointed": Case(lambda: layer(2, shared_experts=1), checkpointed=True),
    "uneven": Case(lambda: layer(2, router=plain()), sequences=(1, 3, 2, 5)),
    "one expert": Case(lambda: to_one_expert(5)),
    "first rank has none": Case(lambda: layer(2, router=plain(), shared_experts=1), sequences=(0, 2, 3, 1)),
    "last rank has none": Case(lambda: layer(2, router=plain()), sequences=(3, 0, 1, 0)),
    "nobody has any": Case(lambda: layer(2, router=plain()), sequences=(0, 0, 0, 0)),
    "every expert": Case(lambda: layer(EXPERTS, router=plain(EXPERTS))),
    "capacity": Case(lambda: layer(2, router=plain(), adjust=(Capacity(0.7, per="sequence"),))),
    "expert choice": Case(lambda: layer(2, router=ExpertChoiceRouter(DIM, EXPERTS, 2.0))),
    "padding": Case(lambda: layer(2, router=plain()), padded=True),
}
"""Routing of which N processes make what one process makes."""

DRAWN: dict[str, Callable[[], nn.Module]] = {
    "GaussianNoise": lambda: plain(noise=GaussianNoise(0.5)),
    "NoisyTopK": lambda: plain(noise=NoisyTopK(DIM, EXPERTS)),
    "GShardRouter": lambda: GShardRouter(DIM, EXPERTS),
    "RandomRouter": lambda: RandomRouter(EXPERTS, 2),
    "SinkhornRouter": lambda: SinkhornRouter(DIM, EXPERTS),
    "HashRouter": lambda: HashRouter(EXPERTS, 2, vocab_size=11, dim=DIM),
}
"""Routers that draw, or look at, what one process has: each process routes as it would by itself."""


def errors(name: str, copies: int = 1, tensor: int = 1) -> dict[str, float]:
    """The largest difference of everything from one process with all tokens; ``copies`` groups of ranks share experts.

    What a model keeps in fp32, whatever it is cast to, is named so. Neighbours in a group of ``tensor`` have the same
    tokens, and share hidden units.
    """
    case, ranks, rank = CASES[name], dist.get_world_size() // tensor, dist.get_rank() // tensor
    torch.manual_seed(0)
    whole = case.build().double()
    with torch.no_grad():
        for path, parameter in whole.named_parameters():
            if path.endswith("_bias"):  # they begin at 0
                parameter.normal_()
    spread = deepcopy(whole)
    mesh = init_device_mesh(
        "cpu", (copies, ranks // copies, tensor), mesh_dim_names=("expert_data", "expert", "tensor")
    )
    if tensor > 1:
        expert_parallel(spread, mesh)
        parallelize_module(spread, mesh["tensor"], Layer(Replicate()))
        set_batch_group(mesh["expert_data", "expert"]._flatten("tokens").get_group())
    else:
        expert_parallel(spread, mesh["expert_data", "expert"] if copies > 1 else mesh["expert"])
    here = list(case.sequences[:ranks])
    given, valid, factor = _inputs(sum(here), case.padded)
    x, ys = _run(whole, case, given, valid, factor, scale=1 / ranks)
    rows = slice(sum(here[:rank]), sum(here[: rank + 1]))
    own_x, own_y = _run(spread, case, given[rows], None if valid is None else valid[rows], factor[rows])
    gradients = full_gradients(spread)
    shared, named = expert_parameters(spread), dict(whole.named_parameters())
    found = {
        "y": own_y - ys[rows],
        "x": own_x.grad / ranks - x.grad[rows],
        "stats": spread.stats.all_reduce().pack()[:-1] - whole.stats.pack()[:-1],
    }
    for path, gradient in gradients.items():
        if path not in shared:  # data parallelism's mean
            dist.all_reduce(gradient)
            gradient.div_(ranks * tensor)
        found[path] = gradient - named[path].grad
    for model in (whole, spread):
        update_balancers(model)
    state = full_state_dict(spread)
    for path, value in whole.state_dict().items():
        found[f"{'fp32 ' if value.dtype == torch.float32 else ''}state {path}"] = state[path] - value
    return {path: float(difference.abs().max()) if difference.numel() else 0.0 for path, difference in found.items()}


def _inputs(sequences: int, padded: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    x, factor = torch.randn(2, sequences, LENGTH, DIM, dtype=torch.float64)
    valid = torch.rand(sequences, LENGTH) < 0.6 if padded else None
    return x, valid, factor


def _run(
    moe: MoE, case: Case, x: Tensor, valid: Tensor | None, factor: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """A forward and backward pass; x with its gradient, and the output."""
    x = x.clone().requires_grad_()
    call = partial(checkpoint, moe, use_reentrant=False) if case.checkpointed else moe
    y = call(x, valid=valid)
    (scale * (y * factor).sum() + sum(auxiliary_losses(moe).values())).backward()
    if moe.adjust and x.numel():
        assert int(moe.assignment.dropped) > 0
    return x, y.detach()


def all_errors(names: list[str], copies: int = 1, tensor: int = 1) -> dict[str, dict[str, float]]:
    return {name: errors(name, copies, tensor) for name in names}


def errors_of_drawn() -> dict[str, float]:
    """Each router's output and gradients here, against the same draw with all experts in this process."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found = {}
    for name, router in DRAWN.items():
        torch.manual_seed(0)
        made = router()
        local = layer(made.top_k, router=made).double()
        spread = deepcopy(local)
        expert_parallel(spread, mesh)
        results = []
        for moe in (local, spread):
            torch.manual_seed(1 + dist.get_rank())
            x = torch.randn(3, LENGTH, DIM, dtype=torch.float64, requires_grad=True)
            y = moe(x, token_ids=torch.randint(11, (3, LENGTH)))
            y.square().sum().backward()
            results.append((y.detach(), x.grad))
        found[name] = max(float((a - b).abs().max()) for a, b in zip(*results, strict=True))
    return found


def single_precision() -> dict[str, float]:
    """Relative errors of output and experts' gradients in fp32, by backend and under autocast, against one process."""
    mesh, rank, ranks = init_device_mesh("cpu", (dist.get_world_size(),)), dist.get_rank(), dist.get_world_size()
    found = {}
    for name in ("cpu", "grouped_mm", "autocast"):
        torch.manual_seed(0)
        whole = layer(2, router=plain(), backend="cpu" if name == "autocast" else name)
        spread = deepcopy(whole)
        expert_parallel(spread, mesh)
        x = torch.randn(ranks, 50, DIM)
        results = []
        for moe, given, scale in ((whole, x, 1 / ranks), (spread, x[rank], 1.0)):
            with torch.autocast("cpu", torch.bfloat16, enabled=name == "autocast"):
                y = moe(given)
            (scale * y.float().square().sum()).backward()
            results.append((y.detach().float(), full_gradients(moe)["experts.down_proj"]))
        (y, gradient), (own, shared) = results
        found[f"{name} dtype"] = float(own.dtype != y.dtype)
        found[name] = max(_relative(own, y[rank]), _relative(shared, gradient))
    return found


def computed_in_half_precision() -> tuple[list[torch.dtype], float, float]:
    """fp32 experts that compute in bf16: dtypes of output and gradients, errors against bf16 experts in one process."""
    mesh, rank, ranks = init_device_mesh("cpu", (dist.get_world_size(),)), dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    spread = layer(2, router=plain())
    whole = deepcopy(spread)
    whole.experts.bfloat16()
    expert_parallel(spread, mesh, torch.bfloat16)
    x = torch.randn(ranks, 50, DIM).bfloat16()
    expected, y = whole(x), spread(x[rank])
    (expected.float().square().sum() / ranks).backward()
    y.float().square().sum().backward()
    found, wanted = (full_gradients(moe)["experts.down_proj"] for moe in (spread, whole))
    return [y.dtype, found.dtype], _relative(y, expected[rank]), _relative(found, wanted)


def evaluated_in_inference_mode() -> float:
    torch.manual_seed(0)
    whole = layer(2, router=plain()).eval()
    spread = deepcopy(whole)
    expert_parallel(spread, init_device_mesh("cpu", (dist.get_world_size(),)))
    x = torch.randn(5 + dist.get_rank(), DIM)
    with torch.inference_mode():
        return float((spread(x) - whole(x)).abs().max())


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def zero_gradients() -> tuple[bool, float]:
    """With every token at expert 0: whether every expert parameter here has a gradient, and its largest entry."""
    torch.manual_seed(0)
    moe = to_one_expert(0)
    expert_parallel(moe, init_device_mesh("cpu", (dist.get_world_size(),)))
    moe(torch.randn(5, DIM)).sum().backward()
    gradients = [parameter.grad for parameter in moe.experts.parameters()]
    whole = all(gradient is not None for gradient in gradients)
    return whole, max(float(gradient.to_local().abs().max()) for gradient in gradients if gradient is not None)


def bytes_sent() -> list[tuple[float, int]]:
    """(counted, predicted) bytes of all-to-alls, of a training step, an evaluation and a step under autocast."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    torch.manual_seed(0)
    moe = layer(3, router=plain(3), adjust=(Capacity(1.0),), shared_experts=1)
    expert_parallel(moe, init_device_mesh("cpu", (ranks,)))
    torch.manual_seed(rank)
    x, found = torch.randn(20 + rank, DIM, requires_grad=True), []
    for training, autocast in ((True, False), (False, False), (True, True)):
        moe.train(training)
        with SentBytes() as sent, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = moe(x)
            if training:
                y.sum().backward()
        leaving, arriving = _crossing(moe.assignment.expert, EXPERTS // ranks)
        sizes = {"dim": DIM, "itemsize": 2 if autocast else 4, "gate_itemsize": 4, "num_experts": EXPERTS}
        predicted = exchanged_bytes(leaving, arriving, **sizes, ranks=ranks, backward=training)
        found.append((sent.by_kind["all_to_all"], predicted.total))
    return found


def crossing_of_all() -> tuple[float, int, int, int]:
    """Of one step: bytes sent, triples of this rank that leave it, bytes of a row and of the counts."""
    ranks = dist.get_world_size()
    torch.manual_seed(0)
    moe = layer(2)
    expert_parallel(moe, init_device_mesh("cpu", (ranks,)))
    torch.manual_seed(dist.get_rank())
    with SentBytes() as sent:
        moe(torch.randn(30, DIM, requires_grad=True)).sum().backward()
    leaving, _ = _crossing(moe.assignment.expert, EXPERTS // ranks)
    return sent.by_kind["all_to_all"], leaving, 4 * DIM, 4 * EXPERTS * (ranks - 1) // ranks


def _crossing(expert: Tensor, own: int) -> tuple[int, int]:
    """Triples that leave this rank, and that come from others, by looking at everyone's choices."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, expert.tolist())
    rank = dist.get_rank()
    leaving = sum(e >= 0 and e // own != rank for e in everyone[rank])
    others = (choices for r, choices in enumerate(everyone) if r != rank)
    return leaving, sum(e >= 0 and e // own == rank for choices in others for e in choices)


def order_of_events() -> list[str]:
    """What happens while tokens are on their way, forward and backward."""
    torch.manual_seed(0)
    moe = layer(2, router=plain(), shared_experts=1)
    expert_parallel(moe, init_device_mesh("cpu", (dist.get_world_size(),)))
    events: list[str] = []
    for name in ("start", "land"):
        setattr(Journey, name, _told(getattr(Journey, name), name, events))
    assert moe.shared is not None
    for part, name in ((moe.shared, "shared"), (moe.experts, "experts")):
        part.register_forward_hook(lambda *_, name=name: events.append(name))
        part.register_full_backward_hook(lambda *_, name=name: events.append(name))
    y = moe(torch.randn(5, DIM, requires_grad=True))
    events.append("backward")
    y.sum().backward()
    return events


def _told(function: Callable[..., Any], name: str, events: list[str]) -> Callable[..., Any]:
    def told(*arguments: Any) -> Any:
        events.append(name)
        return function(*arguments)

    return told


def depths() -> dict[str, float]:
    """Errors of a mixture of depths with a MoE in it, against one process with all rows.

    In evaluation a token is chosen by its first number, so that of rank 0's rows none is, of others' some.
    """
    ranks, rank = dist.get_world_size(), dist.get_rank()
    found = {}
    for training, kind in ((True, "TopKRouter"), (False, "TopKRouter"), (False, "HashRouter")):
        torch.manual_seed(0)
        router = plain() if kind == "TopKRouter" else HashRouter(EXPERTS, 2, vocab_size=11, dim=DIM)
        block = Block(DIM, SelfAttention(DIM, heads=2), layer(2, router=router))
        whole = MixtureOfDepths(block, DIM, capacity=0.5).double().train(training)
        whole.router.predict = lambda x: x[..., 0]  # type: ignore[method-assign]
        spread = deepcopy(whole)
        expert_parallel(spread, init_device_mesh("cpu", (ranks,)))
        x, factor = torch.randn(2, 2 * ranks, LENGTH, DIM, dtype=torch.float64)
        x[:2, :, 0] = -1.0
        ids, rows = torch.randint(11, (2 * ranks, LENGTH)), slice(2 * rank, 2 * rank + 2)
        results = []
        for depths, here, ask, known, scale in (
            (whole, x, factor, ids, 1 / ranks),
            (spread, x[rows], factor[rows], ids[rows], 1.0),
        ):
            given = here.clone().requires_grad_()
            y = depths(given, sequences=Sequences.of(known))
            (scale * (y * ask).sum()).backward()
            results.append(
                (depths, y.detach(), given.grad, full_gradients(depths)["block.feed_forward.experts.down_proj"])
            )
        (one, y, d_x, d_w), (all_of, own_y, own_d_x, own_d_w) = results
        assert training or int(all_of.choice.selected.sum()) == 0 or rank > 0
        assert int(one.choice.selected.sum()) > 0
        name = f"{kind} {training}"
        errors = (own_y - y[rows], own_d_x / ranks - d_x[rows], own_d_w - d_w)
        found[name] = max(float(error.abs().max()) for error in errors)
        counts = all_of.block.feed_forward.stats.all_reduce().pack() - one.block.feed_forward.stats.pack()
        found[f"{name} statistics"] = float(counts[:-1].abs().max())
    return found


def facts() -> dict[str, Any]:
    """All of the above that two processes find out."""
    numbers = (errors_of_drawn, single_precision, computed_in_half_precision, evaluated_in_inference_mode)
    others = (depths, zero_gradients, bytes_sent, crossing_of_all, refusals, order_of_events)
    return {look.__name__: look() for look in (*numbers, *others)}


def refusals() -> dict[str, str]:
    """What is said of what cannot be shared."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shared = layer(2)
    expert_parallel(shared, mesh)
    cases = {
        "uneven": MoE(DIM, HIDDEN, 7, 2),
        "uneven hidden units": MoE(DIM, 7, EXPERTS, 2),
        "soft": layer(2, router=SoftRouter(DIM, EXPERTS, 1)),
        "twice": shared,
        "dense": nn.Linear(2, 2),
    }
    over_both = init_device_mesh("cpu", (1, 1, dist.get_world_size()))
    meshes = {name: over_both if "hidden" in name else mesh for name in cases}
    return {
        name: _message(lambda name=name, module=module: expert_parallel(module, meshes[name]))
        for name, module in cases.items()
    } | {
        "not shared": _message(lambda: _only_dispatched(shared)),
        "twice differentiated": _message(lambda: _differentiated_twice(shared)),
        "untouched": str([type(p).__name__ for p in cases["soft"].experts.parameters()]),
    }


def _only_dispatched(shared: MoE) -> None:
    layer(2, dispatcher=shared.dispatcher)(torch.randn(2, DIM))


def _differentiated_twice(shared: MoE) -> None:
    x = torch.randn(2, DIM, requires_grad=True)
    torch.autograd.grad(shared(x).sum(), x, create_graph=True)


def _message(call: Callable[[], None]) -> str:
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""
