"""A whole study: plan it, time it, run it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from toolkit.checks import require, require_choice, require_positive
from toolkit.data import Corpus, CorpusConfig, prepare_corpus, validation_windows
from toolkit.files import write_atomically
from toolkit.parallel import ParallelConfig, is_main_process
from toolkit.scaling import machine
from toolkit.scaling.folder import StudyFolder
from toolkit.scaling.launch import LAUNCHERS, SlurmSettings, SweepSettings
from toolkit.scaling.launch.slurm import require_submitit
from toolkit.scaling.origin import require_one_origin
from toolkit.scaling.plan import Grid, PlannedRun, Shape, plan_isoflop
from toolkit.scaling.plan.branches import require_branches
from toolkit.scaling.results import RunResult
from toolkit.scaling.sweep import run_sweep, step_seconds
from toolkit.training.config import TrainingConfig
from toolkit.training.precision import resolve_precision
from toolkit.training.provenance import code_version

DRY_RUN_STEP = 2e11
"""A dry run on a CPU tries out steps of up to this many FLOPs: some seconds each."""


@dataclass(frozen=True)
class Study:
    """Everything a study is made of; see the dataclasses of its parts.

    Attributes:
        corpus: the text.
        shape: how a width and a family make a model.
        grid: budgets, widths, families, seeds.
        training: what all runs share; the plan sets steps, learning_rate and seed.
        parallel: processes of one run.
        folder: where it lives.
        cache: folder of tokenised corpora.
        workers: runs at once; 0 for as many as the CPU has room for (one on a GPU or several devices).
        threads: CPU threads of each run.
        validation_windows: the same ones for every run.
        settings: everything that determines the results, as YAML.
        other_code: go on where the folder's finished runs were trained by another version of the code.
        rates: learning rates that a search found, by family; None for the recipe's own.
        launcher: where runs are trained: ``"local"``, on this machine, or ``"slurm"``, a job each.
        slurm: what jobs ask of the cluster.
    """

    corpus: CorpusConfig
    shape: Shape
    grid: Grid
    training: TrainingConfig
    parallel: ParallelConfig
    folder: StudyFolder
    cache: Path
    workers: int
    threads: int
    validation_windows: int
    settings: str
    other_code: bool = False
    rates: Mapping[str, float] | None = None
    launcher: str = "local"
    slurm: SlurmSettings = field(default_factory=SlurmSettings)

    def __post_init__(self) -> None:
        require(self.workers >= 0, "workers", self.workers, "0 (automatic) or more")
        require_positive(threads=self.threads, validation_windows=self.validation_windows)
        self.grid.cells(self.shape.families)  # refuses families that it does not have
        self.parallel.local_batch(self.training.batch_size)
        alone = self.parallel.world_size == 1
        self.parallel.check_launch()
        enough = self.validation_windows >= self.parallel.world_size
        require(enough, "validation_windows", self.validation_windows, "at least one for every process")
        require(alone or self.workers <= 1, "workers", self.workers, "0 or 1 when a run has several devices")
        require_choice("launcher", self.launcher, LAUNCHERS)
        if self.launcher == "slurm":
            require(alone, "launcher", self.launcher, "'local' when a run has several devices")
            require(self.workers == 0, "workers", self.workers, "0 with launcher='slurm', which has jobs_at_once")

    @cached_property
    def prepared(self) -> Corpus:
        """The tokenised corpus, checked to hold the windows that are asked of it."""
        corpus, context = prepare_corpus(self.corpus, self.cache), self.training.context
        for tokens in (corpus.train, corpus.validation):
            validation_windows(tokens, context, 1)  # refuses a context that is longer than they are
        block = self.training.validation_block or context
        most, pieces = (len(corpus.validation) - 1) // block, block // context
        right = f"at most {most * pieces}, the windows of context={context} in the validation split"
        require(self.validation_windows <= most * pieces, "validation_windows", self.validation_windows, right)
        whole = f"a multiple of {pieces}, the windows of context={context} in a validation_block of {block}"
        require(self.validation_windows % pieces == 0, "validation_windows", self.validation_windows, whole)
        return corpus

    @cached_property
    def runs(self) -> list[PlannedRun]:
        """The plan."""
        vocab_size = self.prepared.tokenizer.vocab_size
        runs = plan_isoflop(self.grid, self.shape, vocab_size, self.training, self.rates)
        if self.grid.branch:
            require_branches(runs)
        return runs

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Isolated seconds of one step, by run name; only the main process measures."""
        return self.step_seconds(self.runs)

    def step_seconds(self, runs: Sequence[PlannedRun]) -> dict[str, float]:
        """The same of any runs of its settings."""
        if not is_main_process():
            return {run.name: 0.0 for run in runs}
        return step_seconds(runs, self.folder, self.threads, self.parallel.device)

    def trial_seconds(self, runs: Sequence[PlannedRun] | None = None) -> dict[str, float]:
        """The same for a dry run (of the grid by default): kept nowhere, and empty where it would take too long."""
        runs = self.runs if runs is None else runs
        if self.parallel.device == "cpu" and largest_step(runs) > DRY_RUN_STEP:
            return {}
        return step_seconds(runs, None, self.threads, self.parallel.device)

    @property
    def resolved_workers(self) -> int:
        """Runs at once."""
        if self.launcher == "slurm":
            return self.slurm.jobs_at_once
        if self.workers:
            return self.workers
        alone_on_cpu = self.parallel.device == "cpu" and self.parallel.world_size == 1
        return max(1, machine.cores() // self.threads) if alone_on_cpu else 1

    def claim_folder(self) -> None:
        """Make the folder this study's, once it is sure that it can be planned and before anything long begins.

        Raises:
            ImportError: if its runs cannot be launched for want of submitit.
            ValueError: if it holds another study or cannot be written, or this is no machine of the cluster.
        """
        if self.launcher == "slurm":
            require_submitit(self.slurm)
        if is_main_process() and self.runs:
            self.folder.claim(self.settings + self._circumstances())
            dropped = [asdict(document) for document in self.prepared.report.dropped]
            write_atomically(self.folder.path / "corpus_dropped.json", json.dumps(dropped, indent=2) + "\n")

    def _circumstances(self) -> str:
        """What the settings came to here: rows made under others could not stand in one table."""
        facts = {
            "corpus_digest": self.prepared.digest,
            "precision": resolve_precision(self.training.precision, self.parallel.device),
            "device": self.parallel.device,
            "threads": self.threads,
        }
        return "# came to\n" + "".join(f"# {name}: {value}\n" for name, value in facts.items())

    def at_work(self) -> AbstractContextManager[None]:
        """While runs are trained: their folder alone where a run has several processes, which claim no runs.

        Raises:
            ValueError: if another sweep has the folder alone.
        """
        return self.folder.alone() if self.parallel.world_size > 1 and is_main_process() else nullcontext()

    def run(self) -> list[RunResult]:
        """Train whatever is not finished yet; all finished rows, in planned order."""
        return self.train(self.runs, self.seconds)

    def train(self, runs: Sequence[PlannedRun], seconds: dict[str, float]) -> list[RunResult]:
        """Train those of ``runs`` that are not finished yet; all finished rows of them, in their order.

        Args:
            runs: planned runs, the study's own or others of its settings.
            seconds: isolated seconds of one step, by run name.

        Raises:
            ValueError: if the folder's finished runs are of another corpus, or of another version of the code and
                ``other_code`` does not allow it.
        """
        if is_main_process():
            names = {run.name for run in runs}
            finished = [row for row in self.folder.table.read() if row.run in names]
            require_one_origin(finished, code_version(), self.prepared.digest, self.other_code)
        settings = SweepSettings(
            self.folder,
            self.corpus,
            self.cache,
            self.parallel,
            self.resolved_workers,
            self.threads,
            self.validation_windows,
            code_version(),
            self.grid.branch,
            self.launcher,
            self.slurm,
        )
        return run_sweep(runs, settings, seconds)


def largest_step(runs: Sequence[PlannedRun]) -> float:
    """FLOPs of the most expensive step among the runs."""
    return max(run.flops["exact"] / run.training.steps for run in runs)
