"""``attention(backend="triton")`` from end to end under the interpreter, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PREAMBLE = """
import torch
from toolkit.attention import *
from toolkit.attention.operator import attention_operator
from toolkit.attention.parse import encode

torch.manual_seed(0)

def draw(q_len, kv_len, batch=2):
    shapes = (batch, 4, q_len, 16), (batch, 2, kv_len, 16), (batch, 2, kv_len, 24)
    return [torch.randn(shape, requires_grad=True) for shape in shapes]

ids = torch.tensor([[0] * 20 + [1] * 21, [3] * 5 + [-1] * 6 + [2] * 30])
"""

AGREE = """
patterns = [
    Causal() & (SlidingWindow(5) | Sinks(2)),
    Causal() & (DilatedWindow(3, 2) | GlobalTokens(positions=[1, 9, 30])),
    Documents(ids) & Causal(),
    PerHead([Causal(), Strided(4), Full(), SlidingWindow(3)]),
    Causal() & (SlidingWindow(4) | GlobalTokens(mask=torch.rand(2, 41) < 0.1)),
]
q, k, v = draw(37, 41)
sinks = torch.randn(4, requires_grad=True)
settings = dict(softcap=2.0, sink_logits=sinks, alibi_slopes=torch.rand(4), dropout_p=0.3, first_head=5)
for pattern in patterns:
    found = []
    for backend in ("triton", "reference"):
        torch.manual_seed(7)
        out, lse = attention(q, k, v, pattern, return_lse=True, backend=backend, **settings)
        total = out.sin().sum() + lse.cos().sum()
        found.append((out, lse, *torch.autograd.grad(total, (q, k, v, sinks))))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)
"""

COMPILE = """
q, k, v = draw(9, 9, batch=1)
pattern = Causal() & (SlidingWindow(5) | Sinks(2))
text, tensors = encode(pattern)
given = q, k, v, None, None, None, tensors, text, 0, 0, 0.3, 0.0, 0.0, 0, "triton"
torch.library.opcheck(attention_operator, given)
kernels = lambda q, k, v: attention(q, k, v, pattern, backend="triton")
textbook = lambda q, k, v: attention(q, k, v, pattern, backend="reference")
found = []
for run in (torch.compile(kernels, fullgraph=True, backend="aot_eager"), textbook):
    out = run(q, k, v)
    found.append((out, *torch.autograd.grad(out.sin().sum(), (q, k, v))))
for mine, theirs in zip(*found, strict=True):
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)
"""

DECODE = """
from functools import partial
from unittest.mock import patch
from toolkit.attention.kernels import backend, launch
backend.MANY_KEYS = 24  # so that a short cache is long enough
q, k, v = (x.detach() for x in draw(41, 41))
sinks = torch.randn(4)
pattern = Causal() & (SlidingWindow(9) | Sinks(2))
expected = attention(q, k, v, pattern, sink_logits=sinks, backend="reference")
attend = partial(attention, backend="triton")
chunks = [30, 3] + [1] * 8
for cache, decoded in ((KeyValueCache(), 9), (RollingCache(9, sinks=2), 0)):  # the rolling one stays too short
    with patch.object(launch, "decode", wraps=launch.decode) as decode:
        parts = [
            attend_cached(attend, *(part[0], cache.append(0, *part[1:]), pattern), sink_logits=sinks)
            for part in zip(*(x.split(chunks, dim=2) for x in (q, k, v)), strict=True)
        ]
    assert decode.call_count == decoded
    torch.testing.assert_close(torch.cat(parts, dim=2), expected, rtol=0, atol=2e-5)
"""


@pytest.mark.parametrize("check", [AGREE, COMPILE, DECODE], ids=["agree", "compile", "decode"])
def test_from_end_to_end(check: str) -> None:
    pytest.importorskip("triton")
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    code = PREAMBLE + check
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
