"""Checkpoints damaged in every way, file by file: whether it is found, named, and the one before it used.

    python experiments/benchmarks/damaged_checkpoints.py

A folder with two checkpoints, of steps 1 and 2, for each damage to each file of the second: the one file of a run whose
processes hold the whole model, and the four of a sharded run's folder. Printed is the step that a run would go on from;
a line where the damage was not found, not named, or a checkpoint other than the one before used, says so and ends the
command with exit code 1.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from toolkit.training.checkpoints import CheckpointStore, problems, read_checkpoint, write_checkpoint

FILES = {"last.ckpt": False, "__0_0.distcp": True, "tensors.json": True, "rest.pt": True, "manifest.json": True}
"""Whether it is of a sharded checkpoint, a folder."""


def flip(place: float) -> Callable[[Path], None]:
    """Change a bit of the byte at ``place``, from 0 to 1, of a file."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[min(int(place * len(content)), len(content) - 1)] ^= 1
        path.write_bytes(content)

    return change


def cut(keep: float) -> Callable[[Path], None]:
    """Keep a share of a file."""

    def change(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])

    return change


def lengthen(path: Path) -> None:
    """Add a byte."""
    path.write_bytes(path.read_bytes() + b"\0")


DAMAGES = {
    "first byte": flip(0.0), "a byte": flip(0.4), "last byte": flip(1.0), "cut by a byte": cut(1 - 1e-9),
    "cut in half": cut(0.5), "emptied": cut(0.0), "deleted": Path.unlink, "longer": lengthen,
}  # fmt: skip


def trial(folder: Path, name: str, damage: str) -> tuple[str, bool]:
    """What became of one damaged file, and whether it is as it should be."""
    store, sharded = CheckpointStore(folder), FILES[name]
    for step in (1, 2):
        state = {"state_dict": {"decoder.weight": torch.full((40, 50), float(step))}, "global_step": step}
        write_checkpoint(state, store.last, before=store.previous, sharded=sharded)
    DAMAGES[damage](store.last / name if sharded else store.last)
    found = problems(store.last)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        newest = store.newest()
    named = any(name in str(warning.message) for warning in said)
    step = 0 if newest is None else int(read_checkpoint(newest)["global_step"])
    right = len(found) == 1 and found[0].startswith(name) and named and step == 1
    return f"{name:<15}{damage:<16}{step:>5}   {'; '.join(found) or 'NOT FOUND'}{'' if right else '   WRONG'}", right


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'file':<15}{'damage':<16}{'from':>5}   found")
    right = []
    with tempfile.TemporaryDirectory() as place:
        for number, (name, damage) in enumerate((name, damage) for name in FILES for damage in DAMAGES):
            line, good = trial(Path(place, str(number)), name, damage)
            right.append(good)
            print(line)
    print(f"{sum(right)} of {len(right)} damages were found and named, and the checkpoint before used")
    raise SystemExit(not all(right))


if __name__ == "__main__":
    main()
