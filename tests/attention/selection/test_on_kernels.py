"""Selections through the Triton kernels, interpreted: in a process of its own, which chooses so at import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = """
import torch
from toolkit.attention.selection import moba, native_sparse

torch.manual_seed(0)
q, k, v = (torch.randn(1, heads, 21, 16, requires_grad=True) for heads in (2, 1, 1))
gates = torch.rand(1, 2, 21, 3)
sizes = dict(block=4, top_k=4, compress_block=4, stride=2, window=5)
for attend in (
    lambda backend: moba(q, k, v, 4, 3, backend=backend),
    lambda backend: native_sparse(q, k, v, gates, **sizes, backend=backend),
):
    results = []
    for backend in ("triton", "reference"):
        out = attend(backend)
        results.append([out, *torch.autograd.grad(out.sin().sum(), (q, k, v))])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
"""


def test_the_kernels_agree_with_the_reference() -> None:
    pytest.importorskip("triton")
    root = Path(__file__).resolve().parents[3]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
