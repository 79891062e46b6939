"""Time of one training step: families against dense, and bf16 against fp32, side by side in one process.

    python experiments/benchmarks/step_time.py --dims 32 64 --context 128 --rounds 15

Prints, for each width, the median step of every variant and the median of its paired ratios to the dense
fp32 step of the same round, with quartiles.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from toolkit.scaling import ModelShape
from toolkit.training import TrainingConfig, time_steps

PRECISIONS = ("32-true", "bf16-mixed")


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"context {options.context}, batch {options.batch_size}, {options.threads} threads, torch {torch.__version__}"
    )
    print(f"{'dim':>5} {'family':>14} {'precision':>11} {'ms/step':>8} {'/ dense fp32 (quartiles)':>26}")
    for dim in options.dims:
        variants = [(family, precision) for precision in PRECISIONS for family in ModelShape().families]
        settings = {"steps": 1, "context": options.context, "batch_size": options.batch_size}
        configs = [
            (ModelShape().decoder(family, dim, 256), TrainingConfig(**settings, precision=precision))
            for family, precision in variants
        ]
        times = time_steps(configs, rounds=options.rounds)
        for (family, precision), taken in zip(variants, times, strict=True):
            ratios = [mine / dense for mine, dense in zip(taken, times[0], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            milliseconds = 1e3 * statistics.median(taken)
            print(
                f"{dim:>5} {family:>14} {precision:>11} {milliseconds:>8.1f} {middle:>10.2f} ({low:.2f} to {high:.2f})"
            )


if __name__ == "__main__":
    main()
