"""Runs killed with signal 9 at random steps and started again, against the run that was left alone, bit for bit.

    python experiments/benchmarks/kill_and_resume.py --trials 24

Each trial trains a decoder with dropout (``moe``: and router noise and a moving bias) for sixty steps over six epochs,
kills all its processes twice, and lets the third start finish. Printed are the layout, the steps whose loss had been
written when it was killed, the steps of the checkpoints it went on from, how many losses and weights were compared, and
whether all of them are equal. A table that any trial fails ends with exit code 1. CPU and gloo; CUDA is not yet
measured.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from killed_runs import STEPS, final_weights, finish, kill_at, losses, saved_step

LAYOUTS = {"dense": ("dense", 1, 1), "moe": ("moe", 1, 1), "dense x2": ("dense", 2, 1), "moe x2": ("moe", 2, 1),
           "dense sharded x2": ("dense", 2, 2), "moe sharded x2": ("moe", 2, 2)}  # fmt: skip
"""Model, processes, and of them those that share the parameters."""


def trial(folder: Path, whole: Path, layout: str, seed: int) -> tuple[str, bool]:
    """One line of the table, and whether all was equal."""
    kind, processes, shard = LAYOUTS[layout]
    first, second = sorted(np.random.default_rng(seed).choice(np.arange(2, STEPS - 12), 2, replace=False).tolist())
    killed: list[int] = []
    resumed: list[int] = []
    for step in (first, second):
        killed.append(kill_at(folder, kind, processes, max(step, 1 + max(killed, default=0)), shard=shard))
        resumed.append(saved_step(folder))
    finish(folder, kind, processes, shard=shard)
    mine, its = losses(folder), losses(whole)
    weights, right = final_weights(folder), final_weights(whole)
    same = mine == its and list(mine) == list(range(1, STEPS + 1))
    same &= weights.keys() == right.keys() and all(torch.equal(weights[name], right[name]) for name in right)
    cut, went_on = (", ".join(f"{step:>2}" for step in steps) for steps in (killed, resumed))
    return f"{layout:<18}{cut:>10}{went_on:>14}{len(mine):>9}{len(weights):>9}   {'yes' if same else 'NO'}", same


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24, help="layouts take turns")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial's steps; the next has the next")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:

        @functools.cache
        def unbroken(layout: str) -> Path:
            kind, processes, shard = LAYOUTS[layout]
            finish(Path(place, layout), kind, processes, shard=shard)
            return Path(place, layout)

        print(f"{'trial':<7}{'layout':<18}{'killed at':>10}{'went on from':>14}{'losses':>9}{'weights':>9}   identical")
        equal = 0
        for number in range(arguments.trials):
            layout = arguments.layouts[number % len(arguments.layouts)]
            folder = Path(place, f"trial{number}")
            line, same = trial(folder, unbroken(layout), layout, arguments.seed + number)
            equal += same
            print(f"{number:<7}{line}", flush=True)
    print(f"{equal} of {arguments.trials} trials are the unbroken run, bit for bit")
    raise SystemExit(equal != arguments.trials)


if __name__ == "__main__":
    main()
