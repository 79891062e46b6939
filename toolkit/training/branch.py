"""Runs that begin in the middle of another: one long run with a constant learning rate, decayed from several steps.

A ``"wsd"`` run whose warmup is a number of steps is, until its decay, the same as a longer one. It can be begun from
the longer run's checkpoint (the *trunk*'s) and is then, bit for bit, what it would have been from step 0. Runs of
several lengths so cost the longest and the decays of the others.

Source: Hu et al. 2024, MiniCPM (arXiv 2404.06395), section 4; Hägele et al. 2024 (arXiv 2405.18392), section 3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.checks import require
from toolkit.training.checkpoints import read_checkpoint
from toolkit.training.config import TrainingConfig

SAME = ("model", "corpus", "mixture", "initial", "precision", "validation_windows")
"""Of ``run.json``: what a branch and its trunk have in common beside ``TrainingConfig.until_decay``."""

COPIED = "trunk"
"""How the name of the TensorBoard file ends that holds the trunk's curves."""


def checkpoint_of(folder: Path, step: int) -> Path:
    """The checkpoint of ``step`` that the run in ``folder`` keeps."""
    return folder / "checkpoints" / f"step{step}.ckpt"


@dataclass(frozen=True)
class Branch:
    """A run's beginning: another run's first steps.

    Attributes:
        checkpoint: the trunk's, in its folder's ``checkpoints``.
        step, tokens, flops, seconds: what the trunk had done and spent there.
    """

    checkpoint: Path
    step: int
    tokens: int
    flops: float
    seconds: float

    @classmethod
    def open(cls, checkpoint: Path) -> Branch:
        """Read where a checkpoint stands.

        Raises:
            ValueError: if there is none, or no ``run.json`` in the folder that it belongs to.
        """
        require(checkpoint.exists(), "branch", str(checkpoint), "a checkpoint")
        settings = checkpoint.parent.parent / "run.json"
        require(settings.is_file(), "branch", str(checkpoint), f"in a run's folder, with its settings in {settings}")
        saved = read_checkpoint(checkpoint, mmap=True)
        spent, metrics = saved["callbacks"]["ComputeBudget"], saved["callbacks"]["RunMetrics"]
        return cls(checkpoint, saved["global_step"], spent["tokens"], spent["spent"], metrics["seconds"])

    @property
    def trunk(self) -> Path:
        """The trunk's folder."""
        return self.checkpoint.parent.parent

    def require_fits(self, training: TrainingConfig, settings: Mapping[str, Any]) -> None:
        """Refuse a run that its trunk is not the beginning of.

        Args:
            training: the run's.
            settings: all of the run's, as its ``run.json`` will have them.

        Raises:
            ValueError: naming what is not the trunk's, or the step if one of the two decays before it.
        """
        before, now = json.loads((self.trunk / "run.json").read_text()), json.loads(json.dumps(settings))
        trunk = TrainingConfig(**before["training"])
        require(training.schedule == "wsd", "schedule", training.schedule, "'wsd' for a run that begins as a branch")
        mine, its = training.until_decay, trunk.until_decay
        self._require_equal({name: now[name] for name in SAME}, {name: before.get(name) for name in SAME})
        self._require_equal(mine, its)
        start = min(training.decay_start, trunk.decay_start)
        right = f"of step {start} or before, where the first decay starts, and not of step {self.step}"
        require(self.step <= start, "branch", str(self.checkpoint), right)

    def _require_equal(self, mine: Mapping[str, Any], its: Mapping[str, Any]) -> None:
        for name, value in mine.items():
            require(value == its[name], name, value, f"{its[name]!r}, as in the trunk {self.trunk}")

    def copy_history(self, folder: Path) -> None:
        """Give a run's folder what the trunk wrote down until the branch: rows of ``metrics.jsonl``, and curves.

        Of the validation rows and of TensorBoard's curves these are the trunk's, at the trunk's own steps: true of
        both runs, since both were the same model then. A validation that the run has at the very step of the branch
        is its own.
        """
        from toolkit.training.metrics import whole_rows

        shared = [row for row in whole_rows(self.trunk / "metrics.jsonl") if json.loads(row)["step"] <= self.step]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").write_text("".join(row + "\n" for row in shared))
        self._copy_curves(folder)

    def _copy_curves(self, folder: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

        for left in folder.glob(f"events.out.tfevents.*.{COPIED}"):
            left.unlink()  # of a beginning that was cut off
        events = EventAccumulator(str(self.trunk), size_guidance={"scalars": 0}).Reload()
        with SummaryWriter(str(folder), filename_suffix=f".{COPIED}") as writer:
            for tag in events.Tags()["scalars"]:
                for event in events.Scalars(tag):
                    if event.step <= self._place(tag):
                        writer.add_scalar(tag, event.value, event.step, walltime=event.wall_time)

    def _place(self, tag: str) -> int:
        """The branch's place on the horizontal axis of ``tag``."""
        from toolkit.training.metrics import AXES, places

        axis = next((axis for suffix, axis in AXES.items() if suffix and tag.endswith(suffix)), "step")
        return places(self.step, self.tokens, self.flops, self.seconds)[axis]
