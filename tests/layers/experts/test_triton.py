"""The backend by the kernels, as others find it: without Triton, without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toolkit.layers.experts import triton
from toolkit.layers.experts.activations import Activation
from toolkit.layers.experts.weights import Weights
from toolkit.routing import sort_by_expert, token_starts


def test_no_rows_are_padding() -> None:
    assert [triton.kept_rows(n, torch.bfloat16) for n in (0, 1, 37)] == [0, 1, 37]


@pytest.mark.parametrize("entry", ["forward", "backward"])
def test_tensors_on_the_cpu_are_refused_unless_interpreted(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    token = torch.arange(3)
    rows, starts = sort_by_expert(token, token % 2, 2), token_starts(token, 3)
    x, weights = torch.zeros(3, 16), Weights(torch.zeros(2, 32, 16), torch.zeros(2, 16, 16))
    inputs = x, torch.ones(3), rows, starts, weights, Activation()
    with pytest.raises(RuntimeError, match="backend='triton' on cpu: it needs tensors on a GPU"):
        if entry == "forward":
            triton.forward(*inputs, True)
        else:
            triton.backward(x, *inputs, torch.zeros(3, 32))


def test_without_triton_it_can_be_imported_and_says_what_it_lacks() -> None:
    program = (
        "import sys, torch; sys.modules['triton'] = None\n"
        "import toolkit.layers\n"
        "from toolkit.layers.experts import triton\n"
        "try: triton._kernels(torch.device('cpu'))\n"
        "except RuntimeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("backend='triton' needs the triton package"), done.stderr


PREAMBLE = """
import dataclasses
import torch
from toolkit.layers import Experts
from toolkit.routing import Assignment

torch.manual_seed(0)
token = torch.arange(9).repeat_interleave(2)
expert, weight, logits = torch.randint(-1, 3, (18,)), torch.rand(18), torch.zeros(9, 4)
assignment = Assignment(token=token, expert=expert, weight=weight, logits=logits, probabilities=logits)

def pair(**settings):
    experts = [Experts(24, 16, 4, backend=backend, **settings) for backend in ("triton", "reference")]
    experts[1].load_state_dict(experts[0].state_dict())
    return experts

def results(experts, x, run=None):
    x = x.clone().requires_grad_()
    weight = assignment.weight.clone().requires_grad_()
    out = (run or experts)(x, dataclasses.replace(assignment, weight=weight))
    return [out, *torch.autograd.grad(out.sin().sum(), [x, weight, *experts.parameters()])]
"""

AGREE = """
for activation in ("swiglu", "clamped_swiglu", "gelu", "relu2"):
    for bias, recompute in ((False, True), (True, False)):
        mine, theirs = pair(activation=activation, bias=bias)
        mine.recompute = recompute
        x = torch.randn(9, 24)
        for one, other in zip(results(mine, x), results(theirs, x), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
"""

COMPILE = """
mine, theirs = pair(bias=True)
x = torch.randn(9, 24)
compiled = torch.compile(lambda x, a: mine(x, a), fullgraph=True, backend="aot_eager")
for one, other in zip(results(mine, x, compiled), results(theirs, x), strict=True):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
"""


@pytest.mark.parametrize("check", [AGREE, COMPILE], ids=["agree", "compile"])
def test_from_end_to_end_under_the_interpreter(check: str) -> None:
    root = Path(__file__).resolve().parents[3]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    code = PREAMBLE + check
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
