"""The kernels on a GPU: against the textbook in fp64, in the dtypes the interpreter cannot run, and compiled.

Skipped where there is none. The same laws run everywhere under the interpreter, see tests/attention/kernels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.attention import (
    Causal,
    DilatedWindow,
    Documents,
    GlobalTokens,
    KeyValueCache,
    Pattern,
    PerHead,
    RollingCache,
    Sinks,
    SlidingWindow,
    Strided,
    attend_cached,
    attention,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

N = 1000
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def patterns() -> list[Pattern]:
    """One of each kind of plan; made late, since one holds a tensor on the GPU."""
    ids = torch.arange(N).div(300, rounding_mode="floor").expand(2, N).cuda()
    return [
        Causal(),
        Causal() & (SlidingWindow(200) | Sinks(4)),
        Causal() & (DilatedWindow(64, 3) | GlobalTokens(positions=[0, 333, 777])),
        Causal() & Strided(32),
        PerHead([Causal(), SlidingWindow(100), Causal() & DilatedWindow(50, 4), Sinks(7)]),
        Causal() & Documents(ids),
    ]


def draw(dtype: torch.dtype, head_dim: int, value_dim: int) -> list[Tensor]:
    """q (2, 4, N, head_dim), k and v of two heads, on the GPU."""
    shapes = (2, 4, N, head_dim), (2, 2, N, head_dim), (2, 2, N, value_dim)
    return [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for shape in shapes]


def run(tensors: list[Tensor], pattern: Pattern, backend: str, **settings: Any) -> list[Tensor]:
    """out, lse and the gradients of the tensors and the sink logits."""
    torch.manual_seed(5)
    out, lse = attention(*tensors, pattern, return_lse=True, backend=backend, **settings)
    weights = torch.linspace(-1, 1, out.numel(), device="cuda").view(out.shape).to(out.dtype)
    total = (out * weights).sum() + lse[lse.isfinite()].sum()
    inputs = [*tensors, *(x for x in settings.values() if isinstance(x, Tensor) and x.requires_grad)]
    return [out, lse, *torch.autograd.grad(total, inputs)]


@pytest.mark.parametrize("features", [False, True], ids=["plain", "features"])
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (96, 64), (256, 256)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", range(6))
def test_kernels_are_as_accurate_as_the_textbook(
    which: int, dtype: torch.dtype, dims: tuple[int, int], features: bool
) -> None:
    pattern, tensors = patterns()[which], draw(dtype, *dims)
    settings: dict[str, Any] = {}
    if features:
        sinks = torch.randn(4, device="cuda", requires_grad=True)
        settings = {
            "softcap": 3.0,
            "sink_logits": sinks,
            "alibi_slopes": torch.rand(4, device="cuda"),
            "dropout_p": 0.2,
        }
    exact_tensors = [x.detach().double().requires_grad_() for x in tensors]
    exact = run(exact_tensors, pattern, "reference", **settings)
    textbook, ours = (run(tensors, pattern, backend, **settings) for backend in ("reference", "triton"))
    for truth, theirs, mine in zip(exact, textbook, ours, strict=True):
        seen = truth.isfinite()
        assert torch.equal(seen, mine.isfinite())
        error, bound = ((x.double() - truth)[seen].abs().max() for x in (mine, theirs))
        ulp = torch.finfo(mine.dtype).eps * truth[seen].abs().max()
        assert error <= 2 * bound + 4 * ulp


@pytest.mark.parametrize("which", range(6))
def test_reruns_are_equal_to_the_bit(which: int) -> None:
    pattern, tensors = patterns()[which], draw(torch.bfloat16, 64, 64)
    first, second = (run(tensors, pattern, "triton", dropout_p=0.1) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_it_compiles_whole() -> None:
    tensors = draw(torch.bfloat16, 64, 64)
    pattern = Causal() & (SlidingWindow(200) | Sinks(4))
    compiled = torch.compile(lambda q, k, v: attention(q, k, v, pattern), fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), attention(*tensors, pattern))


@pytest.mark.parametrize("rolling", [False, True])
def test_decoding_is_the_whole_forward(rolling: bool) -> None:
    pattern = Causal() & (SlidingWindow(200) | Sinks(4))
    tensors = [x.detach() for x in draw(torch.float32, 64, 64)]
    cache = RollingCache(200, sinks=4) if rolling else KeyValueCache()
    parts = [
        attend_cached(attention, q, cache.append(0, k, v), pattern)
        for q, k, v in zip(*(x.split([N - 20] + [1] * 20, dim=2) for x in tensors), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=2), attention(*tensors, pattern), rtol=1e-4, atol=1e-4)
