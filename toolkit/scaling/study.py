"""A whole study: plan it, say what it will cost, run it, report it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.table import Table

from toolkit.checks import require, require_choice, require_positive
from toolkit.data import Corpus, CorpusConfig, prepare_corpus, validation_windows
from toolkit.files import write_atomically
from toolkit.parallel import ParallelConfig, is_main_process
from toolkit.scaling.claims import number
from toolkit.scaling.document import StudyDescription
from toolkit.scaling.folder import StudyFolder
from toolkit.scaling.launch import LAUNCHERS, SlurmSettings, SweepSettings
from toolkit.scaling.launch.slurm import require_submitit
from toolkit.scaling.origin import require_one_origin
from toolkit.scaling.plan import Grid, PlannedRun, Shape, data_warnings, grid_warnings, plan_isoflop
from toolkit.scaling.plan.branches import branches, flops_trained, require_branches
from toolkit.scaling.results import RunResult
from toolkit.scaling.sweep import run_sweep, step_seconds
from toolkit.training.config import TrainingConfig
from toolkit.training.precision import resolve_precision
from toolkit.training.provenance import code_version

DRY_RUN_STEP = 2e11
"""A dry run on a CPU tries out steps of up to this many FLOPs: some seconds each."""

PLAN_COLUMNS = (
    *("run", "params", "active", "layers", "tokens", "epochs", "steps", "batch", "rate", "decay", "FLOPs", "/budget"),
    *("MB", "time s"),
)
"""Of the printed plan; rate and decay are the peak learning rate and AdamW's weight decay."""

ALONE = 1.5
"""A load average up to this is this process alone."""


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
        return (
            max(1, _cores() // self.threads) if self.parallel.device == "cpu" and self.parallel.world_size == 1 else 1
        )

    def print_plan(self, console: Console, seconds: dict[str, float], runs: Sequence[PlannedRun] | None = None) -> None:
        """Every run's parameters, tokens, FLOPs, memory and time, what they add up to, and what is short.

        Args:
            console: where to print.
            seconds: isolated seconds of one step, by run name; empty if unknown.
            runs: which; None for the grid's.
        """
        runs = self.runs if runs is None else runs
        table = Table(title=f"{len(runs)} runs on {len(self.prepared.train):,} training tokens", expand=False)
        for column in PLAN_COLUMNS:
            table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
        for run in runs:
            table.add_row(*self._plan_row(run), f"{run.training.steps * seconds[run.name]:.0f}" if seconds else "?")
        console.print(table)
        for line in (*data_warnings(runs, len(self.prepared.train)), *grid_warnings(self.runs)):
            console.print(f"note: {line}", highlight=False)
        flops = sum(run.flops["exact"] for run in runs)
        trained = f", of which {flops_trained(runs):.3g} are trained and the rest shared" if self.grid.branch else ""
        console.print(f"{flops:.3g} FLOPs in all{trained}; {self._duration(runs, seconds)}", highlight=False)

    def _duration(self, runs: Sequence[PlannedRun], seconds: dict[str, float]) -> str:
        if not seconds:
            return f"time unknown: a step takes up to {largest_step(runs):.1e} FLOPs, too many to try out on this CPU"
        points = branches(runs) if self.grid.branch else {}
        shared = {name: point.step for name, point in points.items()}
        total = sum((run.training.steps - shared.get(run.name, 0)) * seconds[run.name] for run in runs)
        return (
            f"training takes about {total / self.resolved_workers / 60:.1f} minutes with {self.resolved_workers} "
            f"runs at once ({total / 60:.1f} one by one; each model timed for a few throw-away steps)"
        )

    def _plan_row(self, run: PlannedRun) -> tuple[str, ...]:
        return (
            run.name,
            f"{run.cost.total_parameters:,}",
            f"{run.cost.total_active_parameters:,}",
            str(len(run.model.blocks)),
            f"{run.tokens:,}",
            f"{self.prepared.epochs(run.tokens):.2f}",
            f"{run.training.steps:,}",
            str(run.training.batch_size),
            f"{run.training.learning_rate:.2g}",
            f"{run.training.weight_decay:.2g}",
            number(run.flops["exact"]),
            f"{run.flops['exact'] / run.budget:.4f}",
            f"{run.memory(self.parallel).training / 1e6:.0f}",
        )

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

    def description(self, title: str, question: str) -> StudyDescription:
        """What the report says of how the study was made."""
        return StudyDescription(
            title=title,
            question=question,
            config=self.settings,
            corpus=(*self.prepared.report.summary().splitlines(), f"hash {self.prepared.digest[:16]}"),
            machine=f"{machine()}; {self.resolved_workers} runs at once, {self.threads} threads each"
            + self._elsewhere(),
            precision=resolve_precision(self.training.precision, self.parallel.device),
            conventions=(
                "FLOPs are training FLOPs in the `exact` convention: matrix products only, over visible (query, key) "
                "pairs, router and chosen experts included, backward twice the forward.",
                f"Bits per byte on {self.validation_windows} validation windows of {self.training.context} tokens, "
                "the same for every run.",
                self._learning_rates(),
            ),
            seconds_source="steps x the median time of one step of that model alone on the machine, all models timed "
            f"in turn in one process; validation, logging and Lightning's own overhead are not in it.{self._company()}",
            code_version=code_version(),
            command=shlex.join(["python", *sys.argv]),
            planned_runs=tuple(run.name for run in self.runs),
        )

    def _learning_rates(self) -> str:
        recipe = self.grid.recipe.describe()
        if self.rates is None:
            return f"{recipe} The same for every family; it was not tuned for each."
        found = ", ".join(f"`{family}` {rate:.3g}" for family, rate in self.rates.items())
        return f"{recipe} Each family's own at that width was searched for first: {found}."

    def _elsewhere(self) -> str:
        """What the report adds of the machine where runs are trained on others."""
        return ", on a cluster; this machine timed the steps" if self.launcher == "slurm" else ""

    def _company(self) -> str:
        """A sentence for the report if the machine was not alone while steps were timed; else nothing."""
        if not self.folder.step_load.exists():
            return ""
        load = json.loads(self.folder.step_load.read_text())
        if load <= ALONE:
            return ""
        return (
            f" The machine was shared meanwhile (load average {load:g} on {_cores()} cores when timing began): times "
            "are too long, and between models, though they took turns, differences of a fifth mean little."
        )


def largest_step(runs: Sequence[PlannedRun]) -> float:
    """FLOPs of the most expensive step among the runs."""
    return max(run.flops["exact"] / run.training.steps for run in runs)


def machine() -> str:
    """The processor and its cores, one line."""
    return f"{_processor()}, {_cores()} cores"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
