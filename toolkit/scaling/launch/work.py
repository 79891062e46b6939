"""What a worker does with one run of a sweep, in whichever process and on whichever machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from toolkit.data import Corpus, prepare_corpus
from toolkit.scaling.beginnings import Beginnings
from toolkit.scaling.launch.claim import RunClaims
from toolkit.scaling.launch.settings import SweepSettings
from toolkit.scaling.plan import PlannedRun
from toolkit.scaling.results import RunResult

Report = Callable[[int, int], None]
Train = Callable[[PlannedRun, Corpus, SweepSettings, float, "Report | None", Beginnings], RunResult]


@dataclass(frozen=True)
class SweepWork:
    """Claims a run, trains it and records it.

    Attributes:
        settings: of the sweep.
        seconds: isolated seconds of one step, by run name.
        beginnings: the checkpoints that branches begin from.
        train: trains one run; :func:`toolkit.scaling.sweep.train_one`.
    """

    settings: SweepSettings
    seconds: Mapping[str, float]
    beginnings: Beginnings
    train: Train

    def corpus(self) -> Corpus:
        """The tokens, with this process set up for training on them."""
        settle(self.settings.threads)
        return prepare_corpus(self.settings.corpus, self.settings.cache)

    def __call__(self, run: PlannedRun, corpus: Corpus, report: Report | None = None) -> None:
        """Train ``run`` and append its row, unless it is in the table or another worker is at it.

        Raises:
            ClaimLostError: if this process was away for so long that another has taken the run over.
        """
        table = self.settings.folder.table
        with RunClaims(self.settings.folder.claims).hold(run.name) as claim:
            if claim is None or any(row.run == run.name for row in table.read()):
                return
            told = claim.watched(report)
            row = self.train(run, corpus, self.settings, self.seconds[run.name], told, self.beginnings)
            claim.require()
            table.append(row)


def settle(threads: int) -> None:
    """Set up this process for training and for timing alike."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # attention weights near 0 would otherwise slow a CPU's products
