"""Time and memory of a whole MoE layer against a dense layer of the same FLOPs, and against other libraries.

    python experiments/benchmarks/moe.py                          # all tables on the CPU, some minutes
    python experiments/benchmarks/moe.py --tables dense --rounds 15
    python experiments/benchmarks/moe.py --tables profile         # where the time goes
    python experiments/benchmarks/moe.py --monitor                # what watching the routers costs a training step
    python experiments/benchmarks/moe.py --device cuda            # the kernels; not yet run on a card

Timed is forward + backward of the whole layer: router, balance and z-loss, statistics, dispatch, experts, combine.
Everything that is compared takes turns in one process. A ratio is the median of the ratios of each round, with
quartiles. Contenders that are not installed, or refuse a case, are named with the reason.

dense: ours over one SwiGLU of width top_k * hidden_dim. peers: ours over other libraries' on the same weights, which
compute no loss and no statistics. memory: growth of a fresh process over one forward + backward. recompute: what
keeping only the input costs and saves. profile: time by stage, top-k, sort and combine apart. monitor: steps of a
small decoder's training with what watches its routers over steps without (:mod:`moe_monitor`), in sums over the steps
from one record to the next.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from moe_peers import GPU_PEERS, PEERS, Shape
from timing import against, in_turns, milliseconds, ratio, resident
from torch import Tensor, nn

from toolkit.layers import MoE, SwiGLU, auxiliary_losses

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES = (Shape(2048, 256, 512, 8, 2), Shape(4096, 512, 512, 32, 2), Shape(4096, 512, 256, 64, 8))
STAGES = {
    "router: top-k": ("aten::topk",),
    "dispatch: sort": ("aten::sort", "aten::argsort", "aten::searchsorted"),
    "dispatch: gather": ("aten::index_select", "aten::gather"),
    "products": ("aten::mm", "aten::addmm", "aten::linear"),
    "combine": ("aten::index_add_", "aten::scatter_add_", "aten::index_copy_"),
    "activations": ("aten::silu", "aten::silu_backward", "aten::mul", "aten::mul_", "aten::linalg_vecdot"),
    "router: softmax, losses": ("aten::_softmax", "aten::logsumexp", "aten::_softmax_backward_data"),
    "zeros and copies": ("aten::zero_", "aten::fill_", "aten::copy_"),
}


@dataclass(frozen=True)
class Bench:
    """Inputs of one shape, in one dtype on one device."""

    shape: Shape
    x: Tensor  # (tokens, dim)
    d_out: Tensor

    @classmethod
    def draw(cls, shape: Shape, dtype: torch.dtype, device: str = "cpu") -> Bench:
        """Normal ones; x wants a gradient."""
        x, d_out = (torch.randn(shape.tokens, shape.dim, dtype=dtype, device=device) for _ in range(2))
        return cls(shape, x.requires_grad_(), d_out)

    def moe(self, backend: str = "auto", recompute: bool = False) -> MoE:
        """Ours."""
        shape = self.shape
        layer = MoE(shape.dim, shape.hidden_dim, shape.num_experts, shape.top_k, backend=backend, recompute=recompute)
        return layer.to(self.x)

    def run_moe(self, moe: MoE) -> Callable[[], Any]:
        """Forward, losses, statistics and backward."""
        wanted = (self.x, *moe.parameters())

        def run() -> Any:
            y = moe(self.x)
            losses = tuple(auxiliary_losses(moe).values())
            healthy = moe.stats.load, moe.stats.max_violation
            return healthy, torch.autograd.grad((y, *losses), wanted, (self.d_out, *map(torch.ones_like, losses)))

        return run

    def run(self, layer: nn.Module) -> Callable[[], Any]:
        """Forward and backward of any layer that maps (1, tokens, dim) to the same."""
        wanted = (self.x, *layer.parameters())
        return lambda: torch.autograd.grad(layer(self.x[None]), wanted, self.d_out[None])


def table_dense(options: argparse.Namespace) -> None:
    """Ours over a dense layer of the same active FLOPs."""
    print("\ndense: whole MoE / dense SwiGLU of the same FLOPs, forward + backward")
    for shape in SHAPES:
        for name, dtype in DTYPES.items():
            bench = Bench.draw(shape, dtype)
            dense = SwiGLU(shape.dim, shape.top_k * shape.hidden_dim).to(dtype)
            mine, theirs = in_turns([bench.run_moe(bench.moe()), bench.run(dense)], options.rounds)
            print(f"  {shape} {name}: {against(mine, theirs)}")


def table_peers(options: argparse.Namespace) -> None:
    """Ours over the others, on the same weights."""
    cuda = options.device == "cuda"
    print("\npeers: ours / theirs, forward + backward (below 1: ours is faster)")
    for shape in SHAPES:
        for name, dtype in DTYPES.items():
            bench = Bench.draw(shape, dtype, options.device)
            moe = bench.moe()
            for peer, build in (GPU_PEERS if cuda else PEERS).items():
                try:
                    runs = [bench.run_moe(moe), bench.run(build(shape, moe).to(bench.x))]
                    mine, theirs = in_turns(runs, options.rounds, options.device)
                except Exception as error:  # a peer may be absent, or refuse the case in its own way
                    print(f"  {shape} {name} {peer:20} not measured: {str(error).splitlines()[0][:80]}")
                    continue
                print(f"  {shape} {name} {peer:20} {against(mine, theirs)}")


def table_recompute(options: argparse.Namespace) -> None:
    """Keeping only the input over keeping the pre-activations too."""
    print("\nrecompute: only the input kept / pre-activations kept too, forward + backward; bytes kept by the layer")
    for shape in SHAPES:
        for name, dtype in DTYPES.items():
            bench = Bench.draw(shape, dtype)
            moes = [bench.moe(recompute=recompute) for recompute in (True, False)]
            again, kept = in_turns([bench.run_moe(moe) for moe in moes], options.rounds)
            sizes = " / ".join(f"{_bytes_kept(bench, moe) / 2**20:.1f}" for moe in moes)
            print(f"  {shape} {name}: {ratio(again, kept)}   {sizes} MiB")


def _bytes_kept(bench: Bench, moe: MoE) -> int:
    """What the backward pass of the layer reads, parameters aside."""
    weights = {parameter.data_ptr() for parameter in moe.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        moe(bench.x)
    return sum(kept.values())


def table_memory(options: argparse.Namespace) -> None:
    """Peak of one forward + backward, each in a process of its own."""
    print("\nmemory: growth of a fresh process over one forward + backward, ours / Hugging Face grouped_mm, MiB")
    for n, shape in enumerate(SHAPES):
        for name in DTYPES:
            mine, theirs = (_probe(who, n, name, options.threads) for who in ("ours", "HF grouped_mm"))
            print(f"  {shape} {name}: {mine / theirs:6.2f}   {mine:.0f} / {theirs:.0f}")


def _probe(who: str, shape: int, dtype: str, threads: int) -> float:
    command = [sys.executable, __file__, "--probe", who, str(shape), dtype, "--threads", str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def probe_memory(who: str, shape: Shape, dtype: torch.dtype) -> None:
    """Print by how many MiB the process grows at most; a tiny layer has warmed it up."""
    for tokens in (64, shape.tokens):
        now = Shape(tokens, shape.dim, shape.hidden_dim, shape.num_experts, shape.top_k) if tokens == 64 else shape
        bench = Bench.draw(now, dtype)
        moe = bench.moe()
        run = bench.run_moe(moe) if who == "ours" else bench.run(PEERS[who](now, moe).to(bench.x))
        before = resident("VmRSS")
        gradients = run()
        grown = resident("VmHWM") - before
        del gradients
    print(grown / 2**20)


def table_profile(options: argparse.Namespace) -> None:
    """Time by stage."""
    for shape in SHAPES:
        for name, dtype in DTYPES.items():
            bench = Bench.draw(shape, dtype)
            run = bench.run_moe(bench.moe())
            run()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                for _ in range(options.rounds):
                    run()
            own = {event.key: event.self_cpu_time_total / 1e3 / options.rounds for event in profile.key_averages()}
            print(f"\nprofile: {shape} {name}, {sum(own.values()):.1f} ms a step")
            left = sum(own.values())
            for stage, operators in STAGES.items():
                taken = sum(own.get(operator, 0.0) for operator in operators)
                left -= taken
                print(f"  {stage:26} {taken:8.2f} ms")
            print(f"  {'everything else':26} {left:8.2f} ms")


def table_monitor(options: argparse.Namespace) -> None:
    """What the guard, the statistics and RouterMonitor cost a training step."""
    from moe_monitor import DIM, EVERY, TRAINING, by_period, contenders  # Lightning takes seconds to import

    print(f"\nmonitor: training steps with / without, sums of {EVERY} steps that hold one record,")
    print(f"  decoder of width {DIM}, {TRAINING.batch_size} sequences of {TRAINING.context} tokens")
    with tempfile.TemporaryDirectory() as folder:
        runs = contenders(Path(folder))
        times = [by_period(taken) for taken in in_turns(list(runs.values()), options.rounds * EVERY)]
    nothing, guard, *_ = times
    print(f"  nothing: {milliseconds(nothing)} ms for the {EVERY} steps")
    for (name, run), taken in zip(list(runs.items())[1:], times[1:], strict=True):
        of_nothing, of_guard = (ratio(taken, without, digits=3) for without in (nothing, guard))
        print(f"  {name:32} / nothing {of_nothing}   / guard {of_guard}")
        if run.monitor is not None:  # the first step warms up
            print(f"  {'':32} its hooks, of its own time: {ratio(by_period(run.watching[1:]), taken, digits=4)}")


TABLES = {
    "dense": table_dense,
    "peers": table_peers,
    "memory": table_memory,
    "recompute": table_recompute,
    "profile": table_profile,
    "monitor": table_monitor,
}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tables", nargs="+", choices=tuple(TABLES), default=list(TABLES))
    parser.add_argument("--profile", action="store_true", help="the same as --tables profile")
    parser.add_argument("--monitor", action="store_true", help="the same as --tables monitor")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--probe", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.probe:
        who, shape, dtype = options.probe
        probe_memory(who, SHAPES[int(shape)], DTYPES[dtype])
        return
    print(f"(tokens, dim, hidden, experts, top_k), {options.rounds} rounds, {options.threads} threads,", end="")
    print(f" torch {torch.__version__}")
    asked = [name for name in ("profile", "monitor") if getattr(options, name)]
    tables = ["peers"] if options.device == "cuda" else asked or options.tables
    for table in tables:
        TABLES[table](options)


if __name__ == "__main__":
    main()
