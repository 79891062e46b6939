"""Passes built by hand, one builder for each kind of order, and the mask they stand for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from toolkit.attention.plan import Pass

SINKS, WINDOW, STEP = 3, 9, 3


def plane(x: Tensor) -> Tensor:
    """(1, 1, ...) int32."""
    return x.to(torch.int32)[None, None]


def band(q_len: int, kv_len: int, width: int) -> tuple[Tensor, Tensor]:
    """First and stop of the last ``width`` keys up to the query's own, the last query meeting the last key."""
    own = torch.arange(q_len) + kv_len - q_len
    return (own + 1 - width).clamp(min=0), (own + 1).clamp(min=0)


def causal(batch: int, heads: int, q_len: int, kv_len: int) -> list[Pass]:
    first, stop = band(q_len, kv_len, kv_len)
    return [Pass(None, None, plane(first[:, None]), plane(stop[:, None]), kv_len)]


def everything(batch: int, heads: int, q_len: int, kv_len: int) -> list[Pass]:
    stop = torch.full((q_len, 1), kv_len)
    return [Pass(None, None, plane(0 * stop), plane(stop), kv_len)]


def sinks_and_window(batch: int, heads: int, q_len: int, kv_len: int) -> list[Pass]:
    first, stop = band(q_len, kv_len, WINDOW)
    firsts = torch.stack([0 * first, first.clamp(min=SINKS)], -1)
    stops = torch.stack([stop.clamp(max=SINKS), stop], -1)
    return [Pass(None, None, plane(firsts), plane(stops), kv_len)]


def three_slots(batch: int, heads: int, q_len: int, kv_len: int) -> list[Pass]:
    """Random runs that differ by batch and head; every fifth row sees nothing."""
    edges = torch.rand(batch, heads, q_len, kv_len + 1).argsort(-1)[..., :6].sort(-1).values.int()
    edges[:, :, ::5] = 0
    return [Pass(None, None, edges[..., ::2].contiguous(), edges[..., 1::2].contiguous(), kv_len)]


def by_batch(batch: int, heads: int, q_len: int, kv_len: int) -> list[Pass]:
    """Batch entries of different length, padded: padding sees nothing and is not seen."""
    first, stop = band(q_len, kv_len, kv_len)
    length = torch.tensor([max(1, kv_len - 7 * entry) for entry in range(batch)])[:, None]
    held = stop[None] <= length
    first, stop = (torch.where(held, x[None], 0).int()[:, None, :, None] for x in (first, stop))
    return [Pass(None, None, first, stop, kv_len)]


def by_head(batch: int, heads: int, q_len: int, kv_len: int) -> list[Pass]:
    """A window of another width for each head."""
    bands = [band(q_len, kv_len, 4 + 11 * head) for head in range(heads)]
    first, stop = (torch.stack(x)[None, :, :, None].int() for x in zip(*bands, strict=True))
    return [Pass(None, None, first, stop, kv_len)]


def gathered(batch: int, heads: int, q_len: int, kv_len: int) -> list[Pass]:
    """A window, then scattered keys before it in a list of their own that differs by batch entry; -1 fills it up."""
    first, stop = band(q_len, kv_len, WINDOW)
    count = max(1, kv_len // 6)
    listed = torch.stack([torch.randperm(kv_len)[:count].sort().values for _ in range(batch)])
    before = (listed[:, None, :] < first[:, None]).sum(-1)[:, None, :, None].int()
    columns = torch.cat([listed, torch.full((batch, 2), -1)], 1).int()[:, None]
    window = Pass(None, None, plane(first[:, None]), plane(stop[:, None]), kv_len)
    return [window, Pass(None, columns, 0 * before, before, count + 2)]


def residues(batch: int, heads: int, q_len: int, kv_len: int) -> list[Pass]:
    """Every STEP-th key up to the query's own: rows and columns sorted by class, a place of rows left empty."""
    rows = sorted(range(q_len), key=lambda i: ((i + kv_len - q_len) % STEP, i))
    columns = sorted(range(kv_len), key=lambda j: (j % STEP, j))
    runs = []
    for i in rows:
        own = i + kv_len - q_len
        seen = [c for c, j in enumerate(columns) if j <= own and (own - j) % STEP == 0]
        runs.append((seen[0], seen[-1] + 1) if seen else (0, 0))
    runs.insert(q_len // 2, (0, 0))
    rows.insert(q_len // 2, -1)
    bounds = torch.tensor(runs)
    return [
        Pass(*(plane(torch.tensor(x)) for x in (rows, columns)), plane(bounds[:, :1]), plane(bounds[:, 1:]), kv_len)
    ]


def some_rows(batch: int, heads: int, q_len: int, kv_len: int) -> list[Pass]:
    """A window for all, and for a few rows, others for each head, what lies before it."""
    first, stop = band(q_len, kv_len, WINDOW)
    count = max(1, q_len // 4)
    rows = torch.stack([torch.randperm(q_len)[:count].sort().values for _ in range(heads)])
    before = first[rows][None, :, :, None].int()
    rows = torch.cat([rows, torch.full((heads, 1), -1)], 1).int()[None]
    before = torch.nn.functional.pad(before, (0, 0, 0, 1))
    return [
        Pass(None, None, plane(first[:, None]), plane(stop[:, None]), kv_len),
        Pass(rows, None, torch.zeros_like(before), before, kv_len),
    ]


def some_heads(batch: int, heads: int, q_len: int, kv_len: int) -> list[Pass]:
    """Sinks for head 0 alone, then a window for all: the first pass of some heads, the second of another."""
    first, stop = band(q_len, kv_len, WINDOW)
    leading = torch.minimum(first, torch.tensor(SINKS))
    return [
        Pass(None, None, plane(0 * first[:, None]), plane(leading[:, None]), kv_len, heads=(0,)),
        Pass(None, None, plane(first[:, None]), plane(stop[:, None]), kv_len),
    ]


Builder = Callable[[int, int, int, int], list[Pass]]
BUILDERS: dict[str, Builder] = {
    builder.__name__: builder
    for builder in (
        causal,
        everything,
        sinks_and_window,
        three_slots,
        by_batch,
        by_head,
        gathered,
        residues,
        some_rows,
        some_heads,
    )
}


def mask_of(passes: list[Pass], batch: int, heads: int, q_len: int, kv_len: int) -> Tensor:
    """(batch, heads, q_len, kv_len) bool: what the passes see, place by place; no pair may be seen twice."""
    seen = torch.zeros(batch, heads, q_len, kv_len, dtype=torch.int32)
    for part in passes:
        places = torch.arange(part.n_columns)
        inside = ((part.first[..., None] <= places) & (places < part.stop[..., None])).any(-2)
        inside = inside.expand(batch, heads, -1, -1)
        rows = torch.arange(q_len)[None, None] if part.rows is None else part.rows
        columns = torch.arange(kv_len)[None, None] if part.columns is None else part.columns
        rows, columns = rows.expand(batch, heads, -1), columns.expand(batch, heads, -1)
        for b in range(batch):
            for h in range(heads) if part.heads is None else part.heads:
                row, column = rows[b, h].long(), columns[b, h].long()
                held = inside[b, h][row >= 0][:, column >= 0].int()
                seen[b, h].index_put_((row[row >= 0][:, None], column[column >= 0][None]), held, accumulate=True)
    assert int(seen.max()) <= 1
    return seen.bool()
