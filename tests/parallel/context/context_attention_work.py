"""What processes do to hold attention over parts of a sequence against attention over the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from context_patterns import BATCH, HEADS, LENGTH, by_position, everything
from torch import Tensor

from toolkit.attention import Causal, Full, Pattern, attention
from toolkit.parallel import SentBytes
from toolkit.parallel.context import (
    AttentionShape,
    Layout,
    RingAttention,
    UlyssesAttention,
    join_sequence,
    ring,
    ring_traffic,
    sequence_positions,
    split_sequence,
    ulysses_traffic,
)

ROWS = [(a, b, a ^ b, c, a ^ c, b ^ c, a ^ b ^ c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
"""The orthogonal array L8: any two of seven settings meet in all four ways."""


def tensors(kv_heads: int, value_dim: int, seed: int) -> dict[str, Tensor]:
    """Whole q, k, v, sink logits, slopes, and the gradients of out and lse."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return {
        "q": normal(BATCH, HEADS, LENGTH, 8),
        "k": normal(BATCH, kv_heads, LENGTH, 8),
        "v": normal(BATCH, kv_heads, LENGTH, value_dim),
        "sink_logits": normal(HEADS),
        "alibi_slopes": torch.rand(HEADS, generator=generator),
        "d_out": normal(BATCH, HEADS, LENGTH, value_dim),
        "d_lse": normal(BATCH, HEADS, LENGTH),
    }


def gradients(attend: Callable[..., Any], given: dict[str, Tensor], pattern: Pattern, settings: dict[str, Any]) -> dict:
    """out, lse and the gradients of q, k, v and the sink logits, with the same seed each time."""
    torch.manual_seed(11)
    leaves = {name: given[name].clone().requires_grad_() for name in ("q", "k", "v")}
    if "sink_logits" in settings:
        leaves["sink_logits"] = given["sink_logits"].clone().requires_grad_()
    settings = {**settings, **{name: leaf for name, leaf in leaves.items() if name == "sink_logits"}}
    out, lse = attend(leaves["q"], leaves["k"], leaves["v"], pattern, return_lse=True, **settings)
    seen = lse > -torch.inf  # the gradient of an empty row's lse is 0, and 0 times inf is nan
    loss = (out * given["d_out"]).sum() + (lse.where(seen, 0.0) * given["d_lse"]).sum()
    loss.backward()
    return {"out": out.detach(), "lse": lse.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def largest_errors(method: str, rows: int = len(ROWS)) -> dict[str, float]:
    """The largest difference from the textbook over whole sequences, for each pattern and row of settings.

    With fewer ``rows`` than there are, each pattern takes the next ones: together the patterns meet all.
    """
    group = dist.group.WORLD
    errors = {}
    for turn, (name, pattern) in enumerate((by_position() if method == "ring" else everything()).items()):
        for number in ((turn * rows + place) % len(ROWS) for place in range(rows)):
            zigzag, grouped, narrow, sinks, softcap, alibi, dropout = ROWS[number]
            layout = "zigzag" if zigzag else "contiguous"
            given = tensors(1 if grouped else 2, 5 if narrow else 8, seed=number)
            settings: dict[str, Any] = {"softcap": 2.0} if softcap else {}
            settings |= {"sink_logits": given["sink_logits"]} if sinks else {"scale": 0.3}
            settings |= {"alibi_slopes": given["alibi_slopes"]} if alibi else {}
            settings |= {"dropout_p": 0.3, "first_head": 5} if dropout else {}
            whole = gradients(attention, given, pattern, {**settings, "backend": "reference"})
            axes = [key for key in given if key not in ("sink_logits", "alibi_slopes")]
            part = {**given, **{key: split_sequence(given[key], group, layout, dim=2) for key in axes}}
            kind = RingAttention if method == "ring" else UlyssesAttention
            found = gradients(kind(group, layout), part, pattern, settings)
            errors[f"{name} {number}"] = _largest_error(found, whole, group, layout)
    return errors


def _largest_error(found: dict, whole: dict, group: Any, layout: str) -> float:
    worst = 0.0
    for key, value in whole.items():
        expected = value if key == "sink_logits" else split_sequence(value, group, layout, dim=2)
        if key == "sink_logits":
            dist.all_reduce(found[key], group=group)
        assert found[key].shape == expected.shape
        same = found[key] == expected  # -inf is -inf
        worst = max(worst, float((found[key] - expected).abs().masked_fill(same, 0.0).max()))
    return worst


def same_bits_again() -> dict[str, bool]:
    """Whether a second run gives the same bits."""
    group, same = dist.group.WORLD, {}
    given = tensors(2, 8, seed=0)
    for kind in (RingAttention, UlyssesAttention):
        for layout in ("zigzag", "contiguous"):
            part = {key: x if x.ndim == 1 else split_sequence(x, group, layout, dim=2) for key, x in given.items()}
            settings = {"sink_logits": given["sink_logits"]}
            first, second = (gradients(kind(group, layout), part, Causal(), settings) for _ in range(2))
            same[f"{kind.__name__} {layout}"] = all(torch.equal(first[key], second[key]) for key in first)
    return same


def half_precision_errors() -> dict[str, tuple[float, float, float]]:
    """Errors of both kinds and of one process's attention in bfloat16 against the textbook in fp64, and 4 ulp of it."""
    group, errors = dist.group.WORLD, {}
    given = {key: x.bfloat16() if x.ndim > 1 else x for key, x in tensors(2, 8, seed=3).items()}
    exact = gradients(attention, {key: x.double() for key, x in given.items()}, Causal(), {"backend": "reference"})
    single = gradients(attention, given, Causal(), {})
    for attend in (RingAttention(group), RingAttention(group, "contiguous"), UlyssesAttention(group)):
        layout = attend.layout
        part = {key: x if x.ndim == 1 else split_sequence(x, group, layout, dim=2) for key, x in given.items()}
        found = gradients(attend, part, Causal(), {})
        for key, value in exact.items():
            joined = join_sequence(found[key], group, layout, dim=2)
            parts, one = (float((x.double() - value).abs().max()) for x in (joined, single[key]))
            four_ulp = 4 * torch.finfo(joined.dtype).eps * float(value.abs().max())
            errors[f"{type(attend).__name__} {layout} {key}"] = parts, one, four_ulp
    return errors


@contextmanager
def wrapped_sends() -> Iterator[list[int]]:
    """Bytes handed to torch's sends for other ranks, noted call by call beneath the library's own count."""
    sizes: list[int] = []
    batch, swap = dist.batch_isend_irecv, dist.all_to_all_single

    def noting_batch(operations: list[dist.P2POp]) -> list[dist.Work]:
        sizes.extend(one.tensor.nbytes for one in operations if one.op is dist.isend)
        return batch(operations)

    def noting_swap(arrived: Tensor, outgoing: Tensor, **settings: Any) -> Any:
        sizes.append(outgoing.nbytes * (dist.get_world_size() - 1) // dist.get_world_size())
        return swap(arrived, outgoing, **settings)

    with mock.patch.multiple(dist, batch_isend_irecv=noting_batch, all_to_all_single=noting_swap):
        yield sizes


def sent_bytes(method: str, pattern: Pattern, layout: str, kv_heads: int, value_dim: int) -> dict[str, tuple[int, ...]]:
    """(by torch's calls, by the library's count, predicted), forward and backward."""
    group = dist.group.WORLD
    generator = torch.Generator().manual_seed(0)
    sizes = (HEADS, 8), (kv_heads, 8), (kv_heads, value_dim)
    whole = (torch.randn(BATCH, heads, LENGTH, width, generator=generator) for heads, width in sizes)
    q, k, v = (split_sequence(x, group, layout, dim=2).requires_grad_() for x in whole)
    shape = AttentionShape(BATCH, HEADS, kv_heads, 8, value_dim, itemsize=4)
    shared = Layout(layout, group.size(), LENGTH)
    if method == "ring":
        attend, predicted = RingAttention(group, layout), ring_traffic(pattern, shared, group.rank(), shape)
    else:
        attend, predicted = UlyssesAttention(group, layout), ulysses_traffic(shared, shape)
    with SentBytes() as counted_forward, wrapped_sends() as forward:
        out = attend(q, k, v, pattern)
    with SentBytes() as counted_backward, wrapped_sends() as backward:
        out.sum().backward()
    return {
        "forward": (sum(forward), counted_forward.total, predicted.forward),
        "backward": (sum(backward), counted_backward.total, predicted.backward),
    }


def all_sent_bytes(cases: dict[str, tuple[Any, ...]]) -> dict[str, dict[str, tuple[int, ...]]]:
    """:func:`sent_bytes` of each case."""
    return {name: sent_bytes(*case) for name, case in cases.items()}


def order_of_events() -> list[str]:
    """Messages started and blocks computed, in order, of a full pattern's forward."""
    group = dist.group.WORLD
    events: list[str] = []
    batch, operator = dist.batch_isend_irecv, ring.attention_operator

    def noting_batch(operations: list[dist.P2POp]) -> list[dist.Work]:
        events.append("start")
        return batch(operations)

    def noting_operator(*arguments: Any) -> Any:
        events.append("compute")
        return operator(*arguments)

    q = torch.randn(1, 1, 8, 4)
    with (
        mock.patch.object(dist, "batch_isend_irecv", noting_batch),
        mock.patch.object(ring, "attention_operator", noting_operator),
    ):
        RingAttention(group, "contiguous")(q, q, q, Full())
    return events


def facts() -> dict[str, Any]:
    """What needs no more than one start of the processes."""
    return {"same": same_bits_again(), "errors": half_precision_errors(), "events": order_of_events()}


def split_and_joined() -> dict[str, bool]:
    """Whether cutting and joining are inverse, and positions say what was cut."""
    group = dist.group.WORLD
    whole = torch.arange(48).view(2, 24)
    found = {}
    for layout in ("zigzag", "contiguous"):
        part = split_sequence(whole, group, layout)
        found[f"{layout} joined"] = torch.equal(join_sequence(part, group, layout), whole)
        positions = sequence_positions(24, group, layout)
        found[f"{layout} positions"] = torch.equal(part, whole[:, positions])
    return found
