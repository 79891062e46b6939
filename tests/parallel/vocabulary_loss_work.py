"""What the processes of the tests of a shared vocabulary's loss do: stretches of it against all in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from strategies_work import decoder
from torch import Tensor
from torch.nn import functional as F

from toolkit.data import Examples
from toolkit.models import Decoder
from toolkit.parallel import ParallelConfig, SentBytes, build_mesh, full_gradients, parallelize
from toolkit.parallel.tensor.loss import vocabulary_nll
from toolkit.training import next_token_nll

BATCH, LENGTH, VOCAB = 3, 8, 32


def labels_of(case: str) -> Tensor:
    labels = torch.randint(VOCAB, (BATCH, LENGTH))
    if case == "some asked":
        labels[torch.rand(BATCH, LENGTH) < 0.5] = -100
    return torch.full_like(labels, -100) if case == "nothing asked" else labels


def errors(case: str, dtype: torch.dtype) -> dict[str, Any]:
    """Of values and of this stretch's gradient, from ``cross_entropy`` of all logits in fp32 at least; dtypes."""
    torch.manual_seed(0)
    logits, labels = torch.randn(BATCH, LENGTH, VOCAB, dtype=torch.float64), labels_of(case)
    if case == "large":
        logits = 1e4 * logits
    logits, factor = logits.to(dtype), torch.randn(BATCH, LENGTH).to(torch.promote_types(dtype, torch.float32))
    whole = logits.to(factor.dtype).clone().requires_grad_()
    expected = F.cross_entropy(whole.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    (expected * factor).sum().backward()
    own = logits.chunk(dist.get_world_size(), dim=-1)[dist.get_rank()].clone().requires_grad_()
    found = vocabulary_nll(own, labels, dist.group.WORLD)
    (found * factor).sum().backward()
    assert own.grad is not None and whole.grad is not None
    right = whole.grad.chunk(dist.get_world_size(), dim=-1)[dist.get_rank()]
    worst = {
        "nll": (found - expected) / expected.abs().max().clamp(min=1),
        "gradient": own.grad.to(right.dtype) - right,
    }
    sizes = {name: float(error.detach().abs().max()) for name, error in worst.items()}
    return {**sizes, "dtypes": [str(found.dtype), str(own.grad.dtype)]}


def all_errors(cases: list[tuple[str, torch.dtype]]) -> list[dict[str, Any]]:
    return [errors(*case) for case in cases]


def kept_bytes() -> tuple[int, int]:
    """Of what is kept for the backward pass, those as wide as this stretch of a bf16 vocabulary; and the widest."""
    kept: list[Tensor] = []
    logits = torch.randn(BATCH, LENGTH, VOCAB // dist.get_world_size(), dtype=torch.bfloat16, requires_grad=True)
    torch.manual_seed(0)
    labels = labels_of("all asked")
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        vocabulary_nll(logits, labels, dist.group.WORLD)
    return sum(tensor.nbytes for tensor in kept if tensor.shape == logits.shape), max(each.ndim for each in kept)


def of_a_decoder() -> dict[str, Any]:
    """A decoder's losses, gradients and logits against one process's; bytes sent by its logits and its loss alone."""
    torch.manual_seed(0)
    alone, spread = Decoder(decoder("dense")).double(), Decoder(decoder("dense")).double()
    spread.load_state_dict(alone.state_dict())
    parallelize(spread, build_mesh(ParallelConfig(tensor=2, sequence_parallel=False)))
    ids, labels = torch.randint(VOCAB, (BATCH, LENGTH)), labels_of("some asked")
    batch = Examples(ids, labels)
    found: dict[str, Any] = {}
    for reduction in ("mean", "sum", "none"):
        one, other = (next_token_nll(model, batch, reduction) for model in (alone, spread))
        found[reduction] = float((one - other).detach().abs().max())
    for model in (alone, spread):
        next_token_nll(model, batch).backward()
    right = dict(alone.named_parameters())
    worst = [(gradient - right[name].grad).abs().max() for name, gradient in full_gradients(spread).items()]
    found["gradients"] = float(torch.stack(worst).max())
    alone.zero_grad()
    spread.zero_grad()
    for model in (alone, spread):  # who asks for logits has them, and their gradient
        model(ids).logits.square().sum().backward()
    worst = [(gradient - right[name].grad).abs().max() for name, gradient in full_gradients(spread).items()]
    found["gradients of logits"] = float(torch.stack(worst).max())
    found["logits"] = float((alone(ids).logits - spread(ids).logits).detach().abs().max())
    found["generated"] = float((alone.generate(ids, 4, 0.0) != spread.generate(ids, 4, 0.0)).sum())
    found["forward"], found["with logits"], found["with loss"] = (
        _sent(lambda ask=ask: ask(spread(ids)))
        for ask in (lambda output: output, lambda output: output.logits, lambda output: output.nll(labels))
    )
    stretch = torch.randn(BATCH, LENGTH, VOCAB // 2, dtype=torch.float64, requires_grad=True)
    found["with backward"] = _sent(lambda: vocabulary_nll(stretch, labels, dist.group.WORLD).sum().backward())
    return found


def _sent(call: Callable[[], Any]) -> dict[str, float]:
    with SentBytes() as sent:
        call()
    return dict(sent.by_kind)


def refusals() -> list[str]:
    logits, words = torch.zeros(1, 2, 4), []
    for labels in (torch.zeros(2, dtype=torch.int64), torch.tensor([[0, 8]]), torch.tensor([[0, -1]])):
        try:
            vocabulary_nll(logits, labels, dist.group.WORLD)
        except (ValueError, RuntimeError) as error:
            words.append(f"{type(error).__name__} {error}")
    return words


def facts() -> dict[str, Any]:
    return {look.__name__: look() for look in (kept_bytes, of_a_decoder, refusals)}
