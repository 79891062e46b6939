"""The cases of the interpreter tests: every pair of two settings occurs in one of them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from kernel_passes import BUILDERS, mask_of
from pairwise import pairwise_settings
from textbook import Problem
from torch import Tensor

from toolkit.attention.kernels.config import Tile
from toolkit.attention.plan import Pass
from toolkit.attention.scoring import Scoring

BATCH, GUARD = 2, 8


@dataclass(frozen=True)
class Case:
    """One problem; ``tile`` is block_m and block_n."""

    passes: str = "causal"
    group: int = 1
    lengths: tuple[int, int] = (37, 50)
    dtype: torch.dtype = torch.float32
    dims: tuple[int, int] = (16, 16)
    tile: tuple[int, int] = (16, 16)
    softcap: bool = False
    alibi: bool = False
    sinks: bool = False
    dropout: bool = False
    d_lse: bool = False
    kv_start: int = 0
    first_head: int = 0

    def __str__(self) -> str:
        flags = [name for name in ("softcap", "alibi", "sinks", "dropout", "d_lse") if getattr(self, name)]
        sizes = "x".join(map(str, (self.group, *self.lengths, *self.dims)))
        starts = f"k{self.kv_start}", f"h{self.first_head}"
        return "-".join([self.passes, str(self.dtype)[6:], sizes, "t{}x{}".format(*self.tile), *starts, *flags])


LEVELS: dict[str, tuple[object, ...]] = {
    "passes": tuple(BUILDERS),
    "group": (1, 2, 4),
    "lengths": ((1, 17), (17, 17), (37, 50), (49, 83)),
    "dtype": (torch.float32, torch.float16),
    "dims": ((16, 16), (20, 24), (40, 16), (16, 70)),
    "tile": ((16, 16), (32, 16), (16, 32)),
    "softcap": (False, True),
    "alibi": (False, True),
    "sinks": (False, True),
    "dropout": (False, True),
    "d_lse": (False, True),
    "kv_start": (0, 5),
    "first_head": (0, 3),
}
assert [field.name for field in fields(Case)] == list(LEVELS)


def pairwise(seed: int) -> list[Case]:
    """Few cases in which any two settings of any two fields meet."""
    return [Case(**settings) for settings in pairwise_settings(LEVELS, seed)]


def laid_out(x: Tensor) -> Tensor:
    """The same values between nans, in memory as (batch, rows, heads, channels): what is read beside them shows."""
    batch, heads, rows, channels = x.shape
    store = torch.full((batch, rows + 1, heads, channels + GUARD), torch.nan, dtype=x.dtype)
    view = store[:, :rows, :, :channels].transpose(1, 2)
    return view.copy_(x)


def build(case: Case) -> tuple[Problem, list[Pass], dict[str, Tile]]:
    """The problem, the passes over what it sees, and the tiles to work on. What no pair involves is nan."""
    torch.manual_seed(sum(map(ord, str(case))))
    kv_heads = 1 if case.group == 4 else 2
    heads, (q_len, kv_len), (dim, dim_v) = kv_heads * case.group, case.lengths, case.dims
    passes = BUILDERS[case.passes](BATCH, heads, q_len, kv_len)
    mask = mask_of(passes, BATCH, heads, q_len, kv_len)
    q, k, v = (
        torch.randn(BATCH, h, n, d).to(case.dtype)
        for h, n, d in ((heads, q_len, dim), (kv_heads, kv_len, dim), (kv_heads, kv_len, dim_v))
    )
    scoring = Scoring(
        scale=1.3 * dim**-0.5,
        softcap=2.0 if case.softcap else 0.0,
        alibi_slopes=torch.rand(heads) / 8 if case.alibi else None,
        sink_logits=torch.randn(heads) if case.sinks else None,
        dropout_p=0.3 if case.dropout else 0.0,
        seed=torch.randint(2**62, (1,)) if case.dropout else None,
        first_head=case.first_head,
    )
    q_start = case.kv_start + kv_len - q_len
    d_out = torch.randn(BATCH, heads, q_len, dim_v).to(case.dtype)
    d_lse = torch.randn(BATCH, heads, q_len) if case.d_lse else None
    problem = Problem(q, k, v, mask, scoring, q_start, case.kv_start, d_out, d_lse)
    m, n = case.tile
    return problem, passes, dict.fromkeys(("forward", "queries", "keys", "decode"), Tile(m, n))


def poisoned(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v with nan in the key columns that no query sees and the query rows that see no key, laid out."""
    rows = ~problem.mask.any(-1)[..., None]
    columns = ~problem.mask.any(2).any(1)[:, None, :, None]
    return (
        laid_out(problem.q.masked_fill(rows, torch.nan)),
        laid_out(problem.k.masked_fill(columns, torch.nan)),
        laid_out(problem.v.masked_fill(columns, torch.nan)),
    )
