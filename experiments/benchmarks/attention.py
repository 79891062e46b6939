"""Time and memory of attention against full causal attention's share and against other libraries.

    python experiments/benchmarks/attention.py                       # all tables on the CPU, some minutes
    python experiments/benchmarks/attention.py --tables share --rounds 15
    python experiments/benchmarks/attention.py --device cuda         # the kernels; not yet run on a card

Everything that is compared takes turns in one process. A ratio is the median of the ratios of each round,
with quartiles. Contenders that are not installed, or refuse a case, are named with the reason.

share: forward and backward of a causal window of 512 over (the time of torch's full causal attention x the
share of its pairs that the window sees). peers: ours over each other library, for patterns it can express.
scaling: the window at growing length. memory: peak of a fresh process over inputs, outputs and gradients.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from attention_peers import GPU_PEERS, HEAD_DIM, HEADS, PATTERNS, PEERS, WINDOW, Attend
from timing import against, in_turns, milliseconds, ratio, resident
from torch import Tensor
from torch.nn import functional as F

from toolkit.attention import Causal, Pattern, SlidingWindow, attention

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Tensors:
    """q, k, v and the gradient of out, (1, heads, length, head_dim) each."""

    q: Tensor
    k: Tensor
    v: Tensor
    d_out: Tensor

    @classmethod
    def draw(cls, length: int, dtype: torch.dtype, device: str = "cpu") -> Tensors:
        """Normal ones; q, k, v want gradients."""
        q, k, v, d_out = (torch.randn(1, HEADS, length, HEAD_DIM, dtype=dtype, device=device) for _ in range(4))
        return cls(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), d_out)

    def forward(self, attend: Attend) -> Callable[[], Any]:
        """A call that attends; nothing wants gradients, which some refuse even to be asked for."""
        inputs = self.q.detach(), self.k.detach(), self.v.detach()
        return lambda: attend(*inputs)

    def both(self, attend: Attend) -> Callable[[], Any]:
        """A call that attends and differentiates."""
        return lambda: torch.autograd.grad(attend(self.q, self.k, self.v), (self.q, self.k, self.v), self.d_out)


def ours(pattern: Pattern, backend: str = "auto") -> Attend:
    """This library."""
    return lambda q, k, v: attention(q, k, v, pattern, backend=backend)


def table_share(options: argparse.Namespace) -> None:
    """Window 512 against its share of torch's full causal attention."""
    pattern = Causal() & SlidingWindow(WINDOW)
    share = pattern.area(options.length, options.length) / Causal().area(options.length, options.length)
    print(f"\nshare: forward + backward, window {WINDOW}, {options.length} tokens: over {share:.4f} x causal SDPA")
    for name, dtype in DTYPES.items():
        tensors = Tensors.draw(options.length, dtype)
        runs = [tensors.both(attend) for attend in (ours(pattern), _causal_sdpa)]
        mine, full = in_turns(runs, options.rounds)
        print(f"  {name}: {ratio(mine, full, share)}   {milliseconds(mine)} ms against {milliseconds(full)} ms")


def table_peers(options: argparse.Namespace) -> None:
    """Ours against the others, pattern by pattern."""
    print(f"\npeers: ours / theirs, fp32, {options.length} tokens (below 1: ours is faster)")
    for name, pattern in PATTERNS.items():
        for peer, build in PEERS.items():
            try:
                attend, forward_only = build(name, options.length)
                tensors = Tensors.draw(options.length, torch.float32)
                timed = tensors.forward if forward_only else tensors.both
                mine, theirs = in_turns([timed(ours(pattern)), timed(attend)], options.rounds)
            except Exception as error:  # a peer may be absent, or refuse the case in its own way
                print(f"  {name:22} {peer:16} not measured: {str(error).splitlines()[0][:90]}")
                continue
            what = "forward" if forward_only else "forward + backward"
            print(f"  {name:22} {peer:16} {against(mine, theirs)}, {what}")


def table_scaling(options: argparse.Namespace) -> None:
    """Time of the window at growing length."""
    lengths = [4_096, 8_192, 16_384, 32_768]
    runs = [Tensors.draw(length, torch.float32).both(ours(Causal() & SlidingWindow(WINDOW))) for length in lengths]
    times = in_turns(runs, options.rounds)
    print(f"\nscaling: window {WINDOW}, fp32, forward + backward, over the time at {lengths[0]} tokens")
    for length, taken in zip(lengths, times, strict=True):
        print(f"  {length:6}: {milliseconds(taken)} ms {ratio(taken, times[0])}")


def table_memory(options: argparse.Namespace) -> None:
    """Peak memory at 65,536 tokens, in a process of its own."""
    print(f"\nmemory: peak at 65536 tokens, window {WINDOW}, over q, k, v, out and their gradients")
    for name in DTYPES:
        command = [sys.executable, __file__, "--probe-memory", name, "--threads", str(options.threads)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"  {name}: {run.stdout.strip()}")


def probe_memory(dtype: torch.dtype) -> None:
    """Print how much the process grows in one forward and backward pass, inputs included."""
    attend = ours(Causal() & SlidingWindow(WINDOW))
    Tensors.draw(1_024, dtype).both(attend)()
    before = resident("VmRSS")
    tensors = Tensors.draw(65_536, dtype)
    gradients = tensors.both(attend)()
    needed = 8 * tensors.q.numel() * tensors.q.element_size()
    grown = resident("VmHWM") - before
    assert all(x.isfinite().all() for x in gradients)
    print(f"{grown / needed:.2f} x ({grown / 2**20:.0f} MiB over {needed / 2**20:.0f} MiB)")


def table_cuda(options: argparse.Namespace) -> None:
    """The kernels against FlexAttention, torch's own and flash-attn. Not yet run on a card."""
    print(f"\ncuda: ours (triton) / theirs, bf16, {options.length} tokens, {torch.cuda.get_device_name()}")
    for name, pattern in PATTERNS.items():
        for peer, build in GPU_PEERS.items():
            for what in ("forward", "forward + backward"):
                tensors = Tensors.draw(options.length, torch.bfloat16, "cuda")
                timed = tensors.forward if what == "forward" else tensors.both
                try:
                    runs = [timed(ours(pattern, "triton")), timed(build(name, options.length, "cuda")[0])]
                    mine, theirs = in_turns(runs, options.rounds, "cuda")
                except Exception as error:  # a peer may be absent, or refuse the case in its own way
                    print(f"  {name:22} {peer:12} {what:18} not measured: {str(error).splitlines()[0][:80]}")
                    continue
                print(f"  {name:22} {peer:12} {what:18} {against(mine, theirs)}")


def _causal_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


TABLES = {"share": table_share, "peers": table_peers, "scaling": table_scaling, "memory": table_memory}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tables", nargs="+", choices=tuple(TABLES), default=list(TABLES))
    parser.add_argument("--length", type=int, default=8_192)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--probe-memory", choices=tuple(DTYPES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.probe_memory:
        probe_memory(DTYPES[options.probe_memory])
        return
    print(
        f"1 x {HEADS} x length x {HEAD_DIM}, {options.rounds} rounds, {options.threads} threads,"
        f" torch {torch.__version__}"
    )
    for table in [table_cuda] if options.device == "cuda" else [TABLES[name] for name in options.tables]:
        table(options)


if __name__ == "__main__":
    main()
